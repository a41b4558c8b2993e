"""Distilling the teacher into the student on a coreset, on Ray Train."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from echostill.distill.objective import DistillationObjective, ObjectiveSettings
from echostill.distill.reconstructions import draw_reconstructions
from echostill.distill.teacher_cache import CachedTeacher, Precision
from echostill.platform import runtime
from echostill.platform.config import Config, ModelsConfig, execution
from echostill.platform.errors import UsageError
from echostill.platform.masks import MaskSettings, apply_frequency, apply_spatial, draw_masks
from echostill.platform.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.progress import Progress, console
from echostill.platform.ray_training import plan, runs_at_once
from echostill.platform.runs import fingerprint
from echostill.platform.staging import StagedImages, stage_images
from echostill.platform.store import Plan, Store
from echostill.platform.tables import Table
from echostill.platform.teacher import Weights, find_teacher
from echostill.platform.training import Batch, TrainingSettings, TrainingState, TrainingTask
from echostill.platform.training_run import WEIGHTS, RunResult, is_finished, train_run

INERT_SPREAD = 0.02  # below this the consistency weight does nothing (method.md, section 2.3)


class StudentSettings(Config):
    """A student to train: its name and its objective."""

    name: str = Field("distilled", pattern=r"^[A-Za-z0-9_.-]+$")
    objective: ObjectiveSettings = ObjectiveSettings()


class DistillConfig(ModelsConfig):
    """Distillation on a coreset; one run per student and seed."""

    coreset: str = Field("default", description="Name of the coreset.")
    students: tuple[StudentSettings, ...] = Field((StudentSettings(),), min_length=1)
    seeds: tuple[int, ...] = Field((), description="Seeds of the runs; default the one seed.")
    training: TrainingSettings = TrainingSettings(steps=20_000, batch_size=1024)
    decoder: DecoderSettings = DecoderSettings()
    masks: MaskSettings = MaskSettings()
    cache: bool = Field(
        False, description="Take the teacher's outputs from what `echostill cache` made."
    )
    cache_name: str = execution("default", "Name of the teacher cache in the store.")
    cache_precision: Precision = Field("float16", description="How cached tokens are kept.")
    cache_limit_gb: float = execution(50.0, "Largest teacher cache, in GB.", gt=0)

    at_once: int | None = execution(None, "Runs side by side; default as many as fit.", ge=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "DistillConfig":
        names = [name for _, _, name in self.runs()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:  # they would be trained side by side into one folder
            raise ValueError(f"run '{twice[0]}' is listed more than once: name students apart")
        return self

    def runs(self) -> list[tuple[StudentSettings, int, str]]:
        """List the runs: student, seed and name."""
        seeds = self.seeds or (self.seed,)
        return [
            (student, seed, f"{student.name}-{seed}") for student in self.students for seed in seeds
        ]


class DistillationTask(TrainingTask):
    """The objective fed with the two views of each image."""

    def __init__(self, objective: DistillationObjective, masks: MaskSettings, seed: int) -> None:
        super().__init__()
        self.objective = objective
        self.masks, self.seed = masks, seed
        self.image_size = objective.student.encoder.image_size

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch."""
        masks = draw_masks(
            self.masks, self.seed, batch.epochs, batch.image_ids, batch.pixels.device
        )
        teacher: nn.Module | None = self.objective.teacher
        if isinstance(teacher, CachedTeacher):
            teacher.look_up(batch.image_ids, batch.epochs)
        output = self.objective(
            batch.pixels,
            apply_spatial(batch.pixels, masks.spatial),
            apply_frequency(batch.pixels, masks.frequency),
            masks.spatial,
            masks.frequency,
        )
        return output.loss, output.parts


@dataclass(frozen=True)
class DistillationJob:
    """One student's training run."""

    store: str
    student: str
    teacher: Weights | None
    image_ids: tuple[str, ...]
    objective: ObjectiveSettings
    settings: TrainingSettings
    decoder: DecoderSettings
    masks: MaskSettings
    seed: int

    def build(self) -> tuple[TrainingTask, StagedImages]:
        """Build the task and open the staged coreset."""
        task = self.task()
        pool = Store(self.store).open_pool()
        return task, stage_images(pool, self.store, task.image_size, self.image_ids)

    def task(self) -> DistillationTask:
        """Build the task, its weights set by the seed alone, whatever the objective."""
        # Before the seed: building the live teacher draws numbers, a cached one none.
        teacher = self.teacher.load() if self.teacher else None
        torch.manual_seed(self.seed)
        encoder = create_encoder(self.student)
        student = MaskedImageModel(encoder, self.decoder)
        objective = DistillationObjective(student, teacher, self.objective)
        masks = self.masks.scaled_to(encoder.image_size, encoder.patch_size)
        view_seed, _ = self.settings.views(self.seed, np.zeros(0, dtype=np.int64))
        return DistillationTask(objective, masks, view_seed)

    def on_checkpoint(self, task: TrainingTask, state: TrainingState) -> None:
        """Nothing is kept besides the checkpoint."""


def distill(config: DistillConfig, *, overwrite: bool = False) -> str:
    """Train every student of the configuration, one run per seed.

    Returns:
        What was done, in words. Each run's student is ``runs/<name>-<seed>/model.safetensors``.
    """
    store = Store(config.store)
    coreset = store.open_coreset(config.coreset)
    ids = selected_ids(coreset)
    needs_teacher = any(student.objective.distil for student in config.students)
    teacher = find_teacher(config) if needs_teacher else None
    if teacher is not None and config.cache:
        from echostill.distill.caching import open_cache  # it imports this module

        teacher = open_cache(config, teacher, ids)
    runs = config.runs()
    open_runs = [run for run in runs if not is_finished(store.run(run[2]))]
    at_once = _at_once(config, len(open_runs), connect=bool(open_runs))
    total = config.training.steps * max(len(open_runs), 1)
    with Progress("distill", total, enabled=config.progress) as bar:
        results = _side_by_side(
            [
                partial(
                    _train_one,
                    *(config, store, coreset, ids, student, seed, name, teacher),
                    overwrite=overwrite,
                    bar=bar,
                    at_once=at_once,
                )
                for student, seed, name in runs
            ],
            at_once,
        )
    lines = [_summary(name, result) for (_, _, name), result in zip(runs, results, strict=True)]
    return f"{len(ids)} images, {config.training.steps} steps; " + "; ".join(lines)


def _side_by_side(calls: list[Callable[[], RunResult]], at_once: int) -> list[RunResult]:
    """Make the calls in threads, each of which waits for a run on the cluster.

    A run that fails does not stop the others; its error is raised when they have ended. Ctrl-C
    ends them all: the connection is closed, and each wait with it.
    """
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="echostill-run")
    futures = [pool.submit(call) for call in calls]
    try:
        wait(futures)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        runtime.disconnect()
        raise
    pool.shutdown()
    return [future.result() for future in futures]


def _at_once(config: DistillConfig, runs: int, *, connect: bool) -> int:
    if connect:
        runtime.connect(config.address)
    resources = runtime.cluster_resources() if connect else runtime.local_resources()
    return config.at_once or runs_at_once(config.training, max(runs, 1), *resources)


def plan_distill(config: DistillConfig) -> Plan:
    """Say what :func:`distill` would do."""
    store = Store(config.store)
    coreset = store.open_coreset(config.coreset)
    count = len(selected_ids(coreset))
    out = Plan("distill")
    out.add("coreset", f"{count} images of {coreset.rows}, {coreset.storage.root}")
    if any(student.objective.distil for student in config.students):
        teacher = find_teacher(config)
        out.add("teacher", f"{teacher.model}, {teacher.path}")
        if config.cache:
            from echostill.distill.caching import open_cache

            ids = selected_ids(coreset)
            out.add("teacher cache", open_cache(config, teacher, ids).folder)
    out.add("student", config.student)
    out.add("steps", config.training.describe(count))
    at_once = _at_once(config, len(config.runs()), connect=False)
    where = plan(config.training, *runtime.local_resources(), at_once)
    out.add("resources", f"{at_once} run(s) at once, each {where.describe()}")
    for student, _, name in config.runs():
        done = "done" if is_finished(store.run(name)) else "to do"
        out.add(name, f"{student.objective.preset}, {done}")
    return out


def selected_ids(coreset: Table) -> tuple[str, ...]:
    """Return the ids that a coreset holds, sorted."""
    table = coreset.read(["image_id", "selected"])
    return tuple(sorted(table.filter(pc.field("selected"))["image_id"].to_pylist()))


def _train_one(
    config: DistillConfig,
    store: Store,
    coreset: Table,
    ids: tuple[str, ...],
    student: StudentSettings,
    seed: int,
    name: str,
    teacher: Weights | None,
    *,
    overwrite: bool,
    bar: Progress,
    at_once: int,
) -> RunResult:
    own = teacher if student.objective.distil else None
    if student.objective.distil and own is None:
        raise UsageError(f"student '{student.name}' follows a teacher and none is given.")
    single = config.model_copy(update={"students": (student,), "seeds": (seed,), "seed": seed})
    wanted = fingerprint(
        single,
        weights={"teacher": own.digest} if own else {},
        inputs={"coreset": coreset.digest, "pool": store.open_pool().digest},
        without=("teacher", "coreset"),
    )
    job = DistillationJob(
        store=store.root,
        student=config.student,
        teacher=own,
        image_ids=ids,
        objective=student.objective,
        settings=config.training,
        decoder=config.decoder,
        masks=config.masks,
        seed=seed,
    )

    def export(task: TrainingTask, folder: Path) -> None:
        assert isinstance(task, DistillationTask)
        encoder = task.objective.student.encoder
        save_weights(encoder, str(folder / WEIGHTS), {"objective": student.objective.preset})
        draw_reconstructions(task, job.build()[1], folder / "reconstructions.png")

    return train_run(
        job,
        store.run(name),
        wanted,
        single,
        stage="distill",
        export=export,
        overwrite=overwrite,
        bar=bar,
        at_once=at_once,
    )


def weight_spread(history: list[dict[str, float]]) -> float | None:
    """Mean over the run of the consistency weight's spread over a batch; None without a teacher."""
    spreads = [row["weight_std"] for row in history if "weight_std" in row]
    return sum(spreads) / len(spreads) if spreads else None


def _summary(name: str, result: RunResult) -> str:
    spread = weight_spread(result.history)
    if spread is not None and spread < INERT_SPREAD:
        console.print(
            f"warning: {name}: the consistency weight's spread is {spread:.4f}, below "
            f"{INERT_SPREAD}: it is inert and the run is plain distillation. Use centring, level "
            "'token' or weighting 'batch-normalised'.",
            markup=False,
            soft_wrap=True,
        )
    state = "already done, " if result.was_finished else ""
    told = "" if spread is None else f", weight spread {spread:.3f}"
    return f"{name}: {state}{result.losses()}{told}"
