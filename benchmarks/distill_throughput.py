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
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from distill_by_hand import hand_written
from distill_common import POOL, TEACHER, pool_images, trained_teacher
from machine import describe_machine
from torch.utils.flop_counter import FlopCounterMode

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.task import DistillationTask
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder
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
        objective = DistillationObjective(student, teacher, ObjectiveSettings(preset="tinyusfm"))
        masks = MaskSettings().scaled_to(teacher.image_size, teacher.patch_size)
        return DistillationTask({"student": objective}, masks, SEED)

    def training(self, steps, **options):
        return TrainingSettings(
            steps=steps, batch_size=self.batch, learning_rate=0.016, checkpoints=1, **options
        )

    def staged(self, task):
        return pool_images(POOL, task.image_size, self.images)


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
    other = hand_written(fresh(), images, check, SEED, 4)
    np.testing.assert_allclose(own, other, rtol=1e-4)
    if setting.compile:
        for module in task.compiled():
            module.compile()
        ours(fresh(), task, images, check)  # compiles
    settings = setting.training(steps)
    speeds, spent, waits = {"ours": [], "hand-written": []}, {"ours": [], "hand-written": []}, []
    for number in range(rounds):
        names = ["ours", "hand-written"] if number % 2 else ["hand-written", "ours"]
        for name in names:
            fresh()
            before = time.process_time()
            if name == "ours":
                _, seconds, waited = ours(task, task, images, settings)
                waits.append(waited / seconds)
            else:
                started = time.perf_counter()
                hand_written(task, images, settings, SEED, steps)
                seconds = time.perf_counter() - started
            spent[name].append(time.process_time() - before)
            speeds[name].append(steps * setting.batch / seconds)
    return {
        "losses_differ_by": float(np.max(np.abs(np.array(own) / other - 1))),
        "ours": statistics.median(speeds["ours"]),
        "hand_written": statistics.median(speeds["hand-written"]),
        "rounds": {name: [round(v, 2) for v in values] for name, values in speeds.items()},
        "ratio": statistics.median(
            a / b for a, b in zip(speeds["ours"], speeds["hand-written"], strict=True)
        ),
        # Of all threads; on a machine that others use this says more than the clock.
        "cpu_ratio": statistics.median(
            b / a for a, b in zip(spent["ours"], spent["hand-written"], strict=True)
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
    print(f"ratio, CPU      {result['cpu_ratio']:8.3f}")
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
