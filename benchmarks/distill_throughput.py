"""How fast distillation trains, against a hand-written plain PyTorch loop of the same mathematics.

Both loops see the same views of the same images from the same start, and their losses are compared
first; then they take turns, and each round's images per second are taken. Beside them stand one and
two Ray Train workers on the same cores, the time of each component, and the physical floor: the
floating-point work of a step at the rate at which this machine multiplies matrices.

    python benchmarks/distill_throughput.py --json
    python benchmarks/distill_throughput.py --teacher usfm --student tinyusfm --weights none
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from distill_common import POOL, TEACHER, pool_images, trained_teacher
from machine import describe_machine
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.task import DistillationTask
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder
from echostill.platform.seeding import unit_uniforms
from echostill.platform.training.batches import Waiting, make_batch
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import TrainingSettings, TrainingState, train
from echostill.platform.training.optimisation import parameter_groups

ALONE = TrainingWorker()
SEED = 0


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    teacher: str
    student: str
    weights: str
    batch: int
    images: int
    compile: bool = False

    def load_teacher(self):
        path = None if self.weights == "none" else Path(self.weights)
        return trained_teacher(self.teacher, path)

    def task(self):
        teacher = self.load_teacher()
        torch.manual_seed(SEED)
        student = MaskedImageModel(create_encoder(self.student), DecoderSettings())
        objective = DistillationObjective(student, teacher, ObjectiveSettings())
        masks = MaskSettings().scaled_to(teacher.image_size, teacher.patch_size)
        return DistillationTask({"student": objective}, masks, SEED)

    def training(self, steps, **options):
        return TrainingSettings(
            steps=steps, batch_size=self.batch, learning_rate=0.016, checkpoints=1, **options
        )

    def staged(self, task):
        return pool_images(POOL, task.image_size, self.images)


# ------------------------------------------------------------------------ the hand-written loop


def hand_written(setting, task, images, settings, steps):
    """Plain PyTorch, top to bottom. Returns the losses; ``task`` gives the start alone."""
    objective = task.objective
    student, teacher = objective.student, objective.teacher
    size, patch = task.image_size, student.patch_size
    matching = objective.terms["tokens"]
    adapters, layers, teacher_layers = matching.adapters, matching.blocks, matching.teacher_blocks
    spatial, frequency = task.masks.spatial, task.masks.frequency
    distance = torch.arange(size) - size // 2
    radius = (distance[:, None] ** 2 + distance[None, :] ** 2).float().sqrt()
    rings = [
        (radius > low) & (radius <= high)
        for low, high in zip(frequency.radii, frequency.radii[1:], strict=False)
    ]
    rings = torch.fft.ifftshift(torch.stack(rings), dim=(-2, -1))
    optimiser = torch.optim.AdamW(
        parameter_groups(task, settings.weight_decay), lr=1.0, betas=settings.betas
    )
    trained = [p for p in task.parameters() if p.requires_grad]
    running = {"feature": [0.0, 0.0], **{place: [0.0, 0.0] for place in range(len(layers))}}
    momentum = objective.settings.momentum

    def remember(name, value):
        total, weight = running[name]
        total = total * momentum + value * (1 - momentum)
        weight = weight * momentum + (1 - momentum)
        running[name] = [total, weight]
        return total / weight

    losses = []
    for step in range(steps):
        positions = np.arange(step * setting.batch, (step + 1) * setting.batch)
        rows, epochs = [], []
        for position in positions:
            epoch, offset = divmod(int(position), len(images))
            rows.append(order_of(epoch, len(images))[offset])
            epochs.append(epoch)
        ids = [images.image_ids[row] for row in rows]

        def numbers(view, count, ids=ids, epochs=epochs):
            return np.concatenate(
                [unit_uniforms(SEED, e, [i], view, count) for i, e in zip(ids, epochs, strict=True)]
            )

        pixels = torch.from_numpy(images.pixels[rows]).float().div_(255)
        u = numbers("crop", 5)
        area = 0.4 + 0.6 * u[:, 0]
        low, high = math.log(0.75), math.log(4 / 3)
        ratio = np.exp(low + (high - low) * u[:, 1])
        width = np.minimum(np.sqrt(area * ratio), 1)
        height = np.minimum(np.sqrt(area / ratio), 1)
        theta = np.zeros((len(rows), 2, 3))
        theta[:, 0, 0] = np.where(u[:, 4] < 0.5, -width, width)
        theta[:, 1, 1] = height
        theta[:, 0, 2] = 2 * u[:, 2] * (1 - width) + width - 1
        theta[:, 1, 2] = 2 * u[:, 3] * (1 - height) + height - 1
        grid = functional.affine_grid(
            torch.from_numpy(theta).float(), [len(rows), 1, size, size], align_corners=False
        )
        pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        pixels = pixels.clamp_(0, 1).expand(-1, 3, -1, -1)

        hidden = torch.zeros(len(rows), spatial.count, dtype=torch.bool)
        chosen = np.argsort(numbers("spatial mask 0", spatial.count), axis=1, kind="stable")
        hidden.scatter_(1, torch.from_numpy(chosen[:, : spatial.hidden].copy()), True)
        hidden = hidden.view(-1, spatial.side, spatial.side)
        hidden = hidden.repeat_interleave(spatial.block_size, 1)
        hidden = hidden.repeat_interleave(spatial.block_size, 2)
        chosen = np.argsort(numbers("frequency mask 0", frequency.count), axis=1, kind="stable")
        stopped = rings[torch.from_numpy(chosen[:, : frequency.stopped].copy())].any(dim=1)[:, None]

        filled = torch.where(hidden[:, None], pixels.mean(dim=(2, 3), keepdim=True), pixels)
        ringed = torch.fft.ifft2(torch.fft.fft2(pixels) * ~stopped).abs()
        views = torch.cat([filled, ringed])

        with torch.no_grad():
            wanted = teacher(views, teacher_layers)
            mean = remember("feature", wanted.pooled.mean(0))
            first, second = (wanted.pooled - mean).chunk(2)
            weight = (1 + functional.cosine_similarity(first, second)) / 2
            targets = []
            for place, tokens in enumerate(wanted.intermediate):
                tokens = functional.layer_norm(tokens[:, 1:], tokens.shape[-1:])
                flat = tokens.flatten(0, 1)
                moments = torch.cat([flat.mean(0), flat.square().mean(0)])
                mean, square = remember(place, moments).chunk(2)
                targets.append((tokens - mean) / (square - mean.square()).clamp_min(1e-4).sqrt())

        made = student(views, layers)
        first, second = made.prediction.chunk(2)
        target = fold(pixels, patch)
        inside = fold(hidden[:, None].expand(-1, 3, -1, -1), patch)
        error = (first - target).abs() * inside
        spatial_loss = error.sum((1, 2)) / inside.sum((1, 2))
        difference = torch.fft.fft2(unfold(second, patch, size) - pixels, norm="ortho").abs()
        frequency_loss = (difference * stopped).sum((1, 2, 3)) / (3 * stopped.sum((1, 2, 3)))
        matched = 0.0
        for adapter, tokens, target in zip(
            adapters, made.encoded.intermediate, targets, strict=True
        ):
            own = adapter(functional.layer_norm(tokens[:, 1:], tokens.shape[-1:]))
            matched = matched + (own - target).square().mean(dim=(1, 2))
        first, second = matched.chunk(2)
        loss = (spatial_loss + frequency_loss + weight * (first + second)).mean()

        for group in optimiser.param_groups:
            group["lr"] = settings.rate_at(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


ORDERS = {}


def order_of(epoch, count):
    from echostill.platform.training.sampling import epoch_permutation

    if (epoch, count) not in ORDERS:
        ORDERS[epoch, count] = epoch_permutation(SEED, epoch, count)
    return ORDERS[epoch, count]


def fold(images, patch):
    columns = functional.pixel_unshuffle(images.float(), patch).flatten(2).transpose(1, 2)
    return columns.unflatten(2, (3, patch * patch)).transpose(2, 3).flatten(2)


def unfold(patches, patch, size):
    columns = patches.unflatten(2, (patch * patch, 3)).transpose(2, 3).flatten(2)
    columns = columns.transpose(1, 2).unflatten(2, (size // patch, size // patch))
    return functional.pixel_shuffle(columns, patch)


# ------------------------------------------------------------------------------ measurements


def ours(task, model, images, settings):
    """Run the real loop; returns its losses, its seconds and those it waited for batches."""
    waiting, state = Waiting(), TrainingState()
    started = time.perf_counter()
    train(
        task, model, images, settings, SEED, state, ALONE, lambda _: None, waiting=waiting
    )  # fmt: skip
    return [row["loss"] for row in state.history], time.perf_counter() - started, waiting.seconds


def against_hand_written(setting, steps, rounds):
    """Ratio of images per second in alternating rounds, after the losses were found equal."""
    task = setting.task()
    images = setting.staged(task)
    start = {name: value.clone() for name, value in task.state_dict().items()}

    def fresh():
        task.load_state_dict(start)
        return task

    check = setting.training(4, log_every=1)
    own = ours(fresh(), task, images, check)[0]
    other = hand_written(setting, fresh(), images, check, 4)
    np.testing.assert_allclose(own, other, rtol=1e-4)
    if setting.compile:
        for module in task.compiled():
            module.compile()
        ours(fresh(), task, images, check)  # compiles
    settings = setting.training(steps)
    speeds, waits = {"ours": [], "hand-written": []}, []
    for number in range(rounds):
        names = ["ours", "hand-written"] if number % 2 else ["hand-written", "ours"]
        for name in names:
            if name == "ours":
                _, seconds, waited = ours(fresh(), task, images, settings)
                waits.append(waited / seconds)
            else:
                fresh()
                started = time.perf_counter()
                hand_written(setting, task, images, settings, steps)
                seconds = time.perf_counter() - started
            speeds[name].append(steps * setting.batch / seconds)
    return {
        "losses_differ_by": float(np.max(np.abs(np.array(own) / other - 1))),
        "ours": statistics.median(speeds["ours"]),
        "hand_written": statistics.median(speeds["hand-written"]),
        "rounds": {name: [round(v, 2) for v in values] for name, values in speeds.items()},
        "ratio": statistics.median(
            a / b for a, b in zip(speeds["ours"], speeds["hand-written"], strict=True)
        ),
        "data_wait_share": statistics.median(waits),
    }


def components(setting, repeats):
    """Milliseconds per step of each part of a step, each alone on the same batch."""
    task = setting.task()
    images = setting.staged(task)
    settings = setting.training(1)
    batch = make_batch(images, settings, SEED, task.image_size, 0, ALONE)
    batch.draws = task.draw(batch)
    optimiser = torch.optim.AdamW(parameter_groups(task, 0.05), lr=1e-6)
    objective = task.objective
    (prepared,) = task.prepare([batch])
    outputs = [objective.ask_teacher(batch.pixels, prepared.views)]
    trained = [p for p in task.parameters() if p.requires_grad]
    task(batch, prepared)[0].backward()

    def student():
        with torch.no_grad():
            objective.student(prepared.views, objective.terms["tokens"].blocks)

    def step():
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()

    def backward():
        task(batch, prepared)[0].backward()

    parts = {
        "read, crop, flip": lambda: make_batch(
            images, settings, SEED, task.image_size, 0, ALONE
        ),
        "choose masks": lambda: task.draw(batch),
        "corrupt": lambda: objective.views(batch.pixels, batch.draws.masks(task.masks)),
        "teacher": lambda: objective.ask_teacher(batch.pixels, prepared.views),
        "weights and targets": lambda: objective.observe(outputs),
        "student forward": student,
        "student forward, losses, backward": backward,
        "clip and optimiser": step,
    }  # fmt: skip
    found = {}
    for name, call in parts.items():
        call()
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        found[name] = round(1000 * statistics.median(seconds), 2)
    return found


def work_per_image(setting):
    """Floating-point operations of one image in one step, counted by torch."""
    task = setting.task()
    images = setting.staged(task)
    batch = make_batch(images, setting.training(1), SEED, task.image_size, 0, ALONE)
    with FlopCounterMode(display=False) as counter:
        task(batch)[0].backward()
    return counter.get_total_flops() / setting.batch


def matrix_rate(setting, seconds=1.5):
    """Best rate of float32 products of the teacher's own MLP shape, in operations per second."""
    encoder = create_encoder(setting.teacher)
    tokens = (encoder.image_size // encoder.patch_size) ** 2 + 1
    rows, width = 2 * setting.batch * tokens, encoder.dim
    first, second = torch.randn(rows, width), torch.randn(width, 4 * width)
    best, started = 0.0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        first @ second
        best = max(best, 8 * rows * width * width / (time.perf_counter() - begun))
    return best


@dataclass(frozen=True)
class TimedJob:
    """A job whose task notes when each step began on the first worker."""

    setting: Setting
    settings: TrainingSettings
    clock: str
    seed: int = field(default=SEED)

    def task(self):
        task = self.setting.task()
        clock, prepare = Path(self.clock), task.prepare

        def noted(batches):
            with clock.open("a") as file:
                file.write(f"{batches[0].step} {time.perf_counter()}\n")
            return prepare(batches)

        task.prepare = noted
        return task

    def build(self):
        task = self.task()
        return task, self.setting.staged(task)

    def on_checkpoint(self, weights, state):
        """Nothing besides."""


def on_ray(setting, steps, workers, threads, folder):
    """Images per second of a Ray Train run after its first steps."""
    from echostill.platform.cluster.waiting import cluster_nodes
    from echostill.platform.progress import Progress
    from echostill.platform.tables.storage import Storage
    from echostill.platform.training.ray import plan, run_training
    from echostill.platform.training.tracking import Logged, Tracker

    name = f"workers-{workers}-{time.time_ns()}"
    storage = Storage(str(folder / "store" / "runs" / name))
    clock = folder / f"{name}.clock"
    tracker = Tracker.start(None, str(folder / "store"), storage, name, {})
    settings = setting.training(steps, workers=workers, threads=threads)
    job = TimedJob(setting, settings, str(clock))
    with Progress("train", steps, enabled=False) as bar:
        where = plan(settings, cluster_nodes())
        run_training(job, storage, "0" * 64, [Logged(list, tracker)], bar, where)
    first = {}
    for line in clock.read_text().splitlines():
        step, moment = line.split()
        first.setdefault(int(step), float(moment))
    warm = min(3, steps // 3)
    return (steps - 1 - warm) * setting.batch / (first[steps - 1] - first[warm])


def kernels(setting, steps):
    """Images per second of choices that change how, not what, is computed."""
    found = {}
    task = setting.task()
    images = setting.staged(task)
    settings = setting.training(steps)
    ours(task, task, images, setting.training(2))
    found["plain"] = steps * setting.batch / ours(task, task, images, settings)[1]
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        found["attention as separate products"] = (
            steps * setting.batch / ours(task, task, images, settings)[1]
        )
    task = setting.task().to(memory_format=torch.channels_last)
    found["channels last"] = steps * setting.batch / ours(task, task, images, settings)[1]
    task = setting.task()
    for module in task.compiled():
        module.compile()
    started = time.perf_counter()
    ours(task, task, images, setting.training(2))
    found["seconds to compile"] = time.perf_counter() - started
    found["compiled"] = steps * setting.batch / ours(task, task, images, settings)[1]
    return {name: round(value, 2) for name, value in found.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="usfm-micro")
    parser.add_argument("--student", default="tinyusfm-micro")
    parser.add_argument("--weights", default=str(TEACHER), help="of the teacher, or 'none'")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile ours")
    parser.add_argument("--no-ray", action="store_true", help="leave one and two workers out")
    parser.add_argument("--no-kernels", action="store_true", help="leave the choices out")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    setting = Setting(
        options.teacher,
        options.student,
        options.weights,
        options.batch,
        options.images,
        options.compile,
    )
    cores = torch.get_num_threads()
    print(f"{describe_machine()}; {setting.student} after {setting.teacher}, batch {setting.batch}")
    result = against_hand_written(setting, options.steps, options.rounds)
    work, rate = work_per_image(setting), matrix_rate(setting)
    result |= {
        "gigaflop_per_image": work / 1e9,
        "matrix_gigaflops": rate / 1e9,
        "floor_images_per_second": rate / work,
        "matmul_share": result["ours"] * work / rate,
        "components_ms": components(setting, 5),
    }
    print_table(result)
    if not options.no_kernels:
        result["kernels"] = kernels(setting, options.steps)
        print("kernels, images/s:", result["kernels"])
    if not options.no_ray:
        from echostill.platform import runtime

        runtime.connect_ray()
        with tempfile.TemporaryDirectory() as name:
            folder, speeds = Path(name), {1: [], 2: []}
            for _ in range(2):
                for workers in (1, 2):
                    threads = max(cores // workers, 1)
                    speeds[workers].append(
                        on_ray(setting, 2 * options.steps, workers, threads, folder)
                    )
        runtime.disconnect()
        one, two = max(speeds[1]), max(speeds[2])
        result |= {"one_worker": one, "two_workers": two, "two_worker_ratio": two / one}
        print(
            f"Ray Train, {cores} threads in all: 1 worker {one:.1f}, 2 workers {two:.1f} images/s"
        )
    if options.json:
        print(json.dumps(result))


def print_table(result):
    print(f"ours            {result['ours']:8.1f} images/s")
    print(f"hand-written    {result['hand_written']:8.1f} images/s")
    print(f"ratio           {result['ratio']:8.3f}")
    print(f"data wait share {result['data_wait_share']:8.3f}")
    print(
        f"floor           {result['floor_images_per_second']:8.1f} images/s "
        f"({result['gigaflop_per_image']:.2f} GFLOP per image at "
        f"{result['matrix_gigaflops']:.0f} GFLOP/s), share {result['matmul_share']:.3f}"
    )
    for name, value in result["components_ms"].items():
        print(f"  {name:<34} {value:8.2f} ms per step")


if __name__ == "__main__":
    main()
