"""The training half of `gpu_check.py`: is a GPU's training that of the CPU, and how fast is it?"""

import copy
import io
import time
import warnings
from contextlib import nullcontext, suppress

import numpy as np
import torch
from gpu_parts import Report, Scale, distillation_work, finish

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.task import DistillationTask
from echostill.platform.computing.precision import autocast, computing_type
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder
from echostill.platform.training.batches import Waiting, loader_threads, make_batch, prefetch
from echostill.platform.training.checkpoints import load_state
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import Totals, TrainingState, train
from echostill.platform.training.measures import NonFiniteLossError
from echostill.platform.training.parallel import whole_state
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages, staged_side

SEED = 0
CPU = torch.device("cpu")


def synthetic_images(count: int, size: int) -> StagedImages:
    """Images of noise at every scale, as training stages them."""
    random, side = np.random.default_rng(SEED), staged_side(size)
    pixels = np.zeros((count, 1, side, side), dtype=np.float32)
    for cells in (4, 16, 64, side):
        fine = random.random((count, 1, cells, cells), dtype=np.float32)
        at = np.arange(side) * cells // side
        pixels += fine[:, :, at][:, :, :, at] / 4
    whole = (255 * pixels).astype(np.uint8)
    return StagedImages(whole, [f"image-{row:06d}" for row in range(count)], ["liver"] * count)


def distillation(scale: Scale) -> DistillationTask:
    """Teacher and student with fresh weights: rates and rounding do not depend on them."""
    torch.manual_seed(SEED)
    teacher = create_encoder(scale.teacher).eval().requires_grad_(False)
    student = MaskedImageModel(create_encoder(scale.student), DecoderSettings())
    masks = MaskSettings().scaled_to(student.encoder.image_size, student.encoder.patch_size)
    objective = DistillationObjective(student, teacher, ObjectiveSettings(preset="tinyusfm"))
    return DistillationTask({"student": objective}, masks, SEED)


def settings_of(scale: Scale, steps: int, **change: object) -> TrainingSettings:
    """Settings of a short run."""
    batch = {"batch_size": scale.batch, "steps": steps, "checkpoints": 1}
    return TrainingSettings(**{**batch, "learning_rate": 1e-3, "crops_on": "device", **change})


def views_agree(scale: Scale, report: Report, rates: dict[str, float]) -> None:
    """Crops and masks of a GPU against those of the CPU."""
    images = synthetic_images(scale.staged // 4, scale.image_size)
    known = settings_of(scale, 1, crops_on="cpu", batch_size=scale.views // 4)
    cut = known.model_copy(update={"crops_on": "device"})
    task = distillation(scale)
    worst, masks_differ = 0.0, 0
    for step in range(4):
        batches = [
            make_batch(images, each, SEED, scale.image_size, step, TrainingWorker())
            for each in (known, cut)
        ]
        for batch in batches:
            batch.draws = task.draw(batch)
        moved = batches[1].to(scale.device)
        worst = max(worst, float((moved.pixels.cpu() - batches[0].pixels).abs().max()))
        first = batches[0].draws.masks(task.masks)
        second = moved.draws.masks(task.masks, scale.device)
        for one, other in zip(first, second, strict=True):
            masks_differ += int((one != other.cpu()).sum())
    report.most(f"crops, largest difference of {scale.views} views", worst, 1e-6)
    report.most("masks, pixels that differ", masks_differ, 0)


def models_agree(scale: Scale, report: Report, rates: dict[str, float]) -> None:
    """Features, loss and gradient norm: float32 on both devices, then the device's own precision.

    Bounds of float32 are those of sums in another order. bfloat16 keeps 8 bits (0.4 %) of each
    factor; over a network of twelve blocks the direction of a feature keeps three digits.
    """
    images = synthetic_images(scale.compared, scale.image_size)
    settings = settings_of(scale, 1, batch_size=scale.compared, crops_on="cpu")
    batch = make_batch(images, settings, SEED, scale.image_size, 0, TrainingWorker())
    start = distillation(scale)
    batch.draws = start.draw(batch)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False

    def measured(device: torch.device, kind: torch.dtype) -> tuple[torch.Tensor, float, float]:
        task = copy.deepcopy(start).to(device)
        moved = batch.to(device)
        with autocast(device, kind):
            prepared = task.prepare([moved])
            loss, _ = task(moved, prepared[0])
            teacher = task.objective.teacher
            assert teacher is not None
            with torch.no_grad():
                pooled = teacher(moved.pixels).pooled
        loss.backward()
        trained = [p for p in task.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
        return pooled.float().cpu(), float(loss.detach()), float(norm)

    feature, loss, norm = measured(CPU, torch.float32)
    own = torch.bfloat16 if not scale.on_gpu else computing_type("auto", scale.device)
    for kind, cosine, off, norm_off in (
        (torch.float32, 0.99999, 1e-4, 1e-3),
        (own, 0.999, 1e-2, 5e-2),
    ):
        name = str(kind).removeprefix("torch.")
        other, its_loss, its_norm = measured(scale.device, kind)
        cosines = torch.nn.functional.cosine_similarity(feature, other)
        report.least(f"{name}: features, smallest cosine", float(cosines.min()), cosine)
        report.most(f"{name}: loss, relative", abs(its_loss / loss - 1), off)
        report.most(f"{name}: gradient norm, relative", abs(its_norm / norm - 1), norm_off)


class _Breaks(DistillationTask):
    """Gives a loss that is no number at one step."""

    broken = -1

    def forward(self, batch, prepared=None):  # type: ignore[no-untyped-def]
        loss, parts = super().forward(batch, prepared)
        return (loss * float("nan") if batch.step == self.broken else loss), parts


def steps_hold(scale: Scale, report: Report, rates: dict[str, float]) -> None:
    """A resumed run, a broken step, and calls that make the host wait for the device."""
    batch = min(scale.batch, 32)
    images = synthetic_images(2 * batch, scale.image_size)
    worker = TrainingWorker(device=scale.device)
    settings = settings_of(scale, 8, batch_size=batch, checkpoints=2, log_every=4)
    kept: dict[int, dict] = {}
    task = distillation(scale).to(scale.device)

    def keep(state: TrainingState) -> None:
        data = io.BytesIO()
        torch.save(whole_state(task, state), data)
        kept[state.step] = load_state(io.BytesIO(data.getvalue()))

    train(task, task, images, settings, SEED, TrainingState(), worker, keep)
    whole, saved = kept[8], kept[4]
    task.load_state_dict(saved["task"])
    state = TrainingState(
        saved["step"], saved["optimiser"], saved["history"], None, saved["scaler"],
        Totals(saved["totals"]), saved["norms"], list(saved["precisions"]),
    )  # fmt: skip
    train(task, task, images, settings, SEED, state, worker, keep)
    ends = [run["history"][-1]["loss"] for run in (whole, kept[8])]
    report.most("resumed run: last loss, relative", abs(ends[1] / ends[0] - 1), 1e-3)
    report.values["precision"] = whole["precisions"][-1][1]
    report.values["loss"] = [round(row["loss"], 4) for row in whole["history"]]

    task.__class__, task.broken = _Breaks, 5
    kept.clear()
    try:
        train(task, task, images, settings, SEED, TrainingState(), worker, keep)
        named = 0
    except NonFiniteLossError as error:
        named = int(error.batch["step"])
    report.most("broken step 6: difference of the named one", abs(named - 6), 0)
    report.most("broken step 6: last step kept", max(kept, default=0), 4)

    if scale.on_gpu:
        quiet = settings_of(scale, 12, batch_size=batch, log_every=100)
        task = distillation(scale).to(scale.device)
        seen: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")

            def watch(step: int) -> None:  # after the first step, which allocates and compiles
                torch.cuda.set_sync_debug_mode("warn" if step == 1 else "default")

            train(task, task, images, quiet, SEED, TrainingState(), worker, lambda _: None,
                  on_logged=watch)  # fmt: skip
            torch.cuda.set_sync_debug_mode("default")
            seen = [f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]
        report.values["synchronising calls"] = sorted(set(seen))
        report.most("synchronising calls in ten steps", len(seen), 0)


def distillation_rate(scale: Scale, report: Report, rates: dict[str, float]) -> None:
    """Images per second of real training steps, and what bounds them."""
    images = synthetic_images(scale.staged, scale.image_size)
    worker = TrainingWorker(device=scale.device)
    settings = settings_of(scale, 1_000_000, log_every=2)
    threads = loader_threads(settings, scale.device)
    deadline = time.perf_counter() + scale.seconds / 4
    made = 0
    started = time.perf_counter()

    def make(step: int) -> object:
        batch = make_batch(images, settings, SEED, scale.image_size, step, worker)
        batch.draws = task.draw(batch)
        return batch.pinned() if scale.on_gpu else batch

    task = distillation(scale).to(scale.device)
    batches = prefetch(make, range(1_000_000), threads=threads)
    for _ in batches:
        made += scale.batch
        if time.perf_counter() > deadline:
            break
    batches.close()
    alone = made / (time.perf_counter() - started)

    waiting, marks = Waiting(), []

    class Enough(Exception):  # noqa: N818
        """The rate is known."""

    def watch(step: int) -> None:
        if step < 4 and scale.on_gpu:
            return
        finish(scale.device)
        marks.append((step, time.perf_counter(), waiting.seconds))
        if time.perf_counter() - marks[0][1] > scale.seconds:
            raise Enough

    if scale.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    settings = settings.model_copy(update={"log_every": 20 if scale.on_gpu else 1})
    with suppress(Enough):
        train(task, task, images, settings, SEED, TrainingState(), worker, lambda _: None,
              on_logged=watch, waiting=waiting)  # fmt: skip
    (first, begun, waited), (last, ended, waited_in_all) = marks[0], marks[-1]
    seconds = max(ended - begun, 1e-9)
    rate, work = (last - first) * scale.batch / seconds, distillation_work(scale)
    rates["distillation"] = rate
    report.values |= {
        "images per second": round(rate, 1),
        "gigaflop per image": round(work / 1e9, 2),
        "share of the matrix rate": round(rate * work / rates["matrix"], 3),
        "data wait share": round((waited_in_all - waited) / seconds, 4),
        "loaders alone, images per second": round(alone, 1),
        "loader threads": threads,
        "batch": scale.batch,
        "steps": last - first,
        "hours for 200,000 images x 400 epochs": round(200_000 * 400 / rate / 3600, 2),
    }
    if scale.on_gpu:
        peak = torch.cuda.max_memory_allocated()
        report.values["peak GPU memory, GB"] = round(peak / 1e9, 2)


def one_step(scale: Scale, profile: object | None = None) -> None:
    """Run one training step, under a profiler where one is given."""
    images = synthetic_images(scale.batch, scale.image_size)
    task = distillation(scale).to(scale.device)
    with profile if profile is not None else nullcontext():
        train(task, task, images, settings_of(scale, 1), SEED, TrainingState(),
              TrainingWorker(device=scale.device), lambda _: None)  # fmt: skip
