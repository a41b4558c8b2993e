"""Distilling the teacher into the student on a coreset, on Ray Train."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from echostill.distill.cache.stage import open_cache
from echostill.distill.cache.teacher_cache import CachedWeights
from echostill.distill.groups import run_groups
from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.reconstructions import draw_reconstructions
from echostill.distill.settings import DistillConfig, StudentRun
from echostill.distill.task import DistillationTask
from echostill.platform import runtime, stages
from echostill.platform.cluster.nodes import Nodes
from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.cluster.waiting import (
    cluster_nodes,
    describe_plan,
    dry_nodes,
    nodes_here,
    plan_on_cluster,
    plan_one_run,
)
from echostill.platform.computing.settling import with_precision
from echostill.platform.masking.masks import MaskSettings
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import Encoder, create_encoder, save_weights
from echostill.platform.models.weights import Weights, find_initial, find_teacher
from echostill.platform.progress import Progress, console
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, fingerprint
from echostill.platform.tables.store import Store, check_origin, read_configuration, selected_ids
from echostill.platform.tables.table import Table
from echostill.platform.training.loop import TrainingState, TrainingTask
from echostill.platform.training.ray import plan, side_by_side
from echostill.platform.training.run import (
    WEIGHTS,
    PlannedRun,
    RunResult,
    is_finished,
    train_together,
)
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages, stage_images
from echostill.platform.training.tracking import RunInput
from echostill.platform.withdrawal.links import describe_loss, explain_withdrawal
from echostill.platform.withdrawal.state import withdrawals

INERT_SPREAD = 0.02  # below this the consistency weight does nothing (method.md, section 2.3)


@dataclass(frozen=True)
class DistillationJob:
    """The training of one student, or of several that share the teacher's work."""

    store: str
    runs: tuple[StudentRun, ...]
    teacher: Weights | None
    image_ids: tuple[str, ...]
    settings: TrainingSettings
    decoder: DecoderSettings
    masks: MaskSettings
    seed: int
    initial: tuple[Weights | None, ...] = ()

    def build(self) -> tuple[TrainingTask, StagedImages]:
        """Build the task and open the staged coreset."""
        task = self.task()
        return task, self.images(task)

    def images(self, task: TrainingTask) -> StagedImages:
        """Open the staged coreset, at the input size of a task."""
        pool = Store(self.store).open_pool()
        return stage_images(pool, self.store, task.image_size, self.image_ids)

    def task(self) -> DistillationTask:
        """Build the task. A student's initial weights depend on the seed, not on its objective."""
        return self._task(None if self._follows is None else self._follows.load())

    def task_to_export(self) -> DistillationTask:
        """Build the task to take trained weights: the teacher is there by its shape alone."""
        return self._task(None if self._follows is None else self._follows.outline())

    @property
    def _follows(self) -> Weights | None:
        return self.teacher if any(run.objective.distil for run in self.runs) else None

    def _task(self, teacher: Encoder | None) -> DistillationTask:
        objectives = {}
        for run, initial in zip(self.runs, self.initial or [None] * len(self.runs), strict=True):
            torch.manual_seed(self.seed)
            if initial is not None:
                encoder = initial.load(trainable=True)
            else:
                encoder = create_encoder(run.model, image_size=run.image_size)
            student = MaskedImageModel(encoder, self.decoder)
            objectives[run.name] = DistillationObjective(student, teacher, run.objective)
        first = objectives[self.runs[0].name]
        masks = (first.settings.masks or self.masks).scaled_to(
            encoder.image_size, encoder.patch_size
        )
        return DistillationTask(objectives, masks, self.settings.seed_of_views(self.seed))

    def on_checkpoint(self, weights: dict[str, Tensor], state: TrainingState) -> None:
        """Do nothing: only the checkpoint itself is kept."""


@logged(stages.DISTILL)
def distill(config: DistillConfig, *, overwrite: bool = False) -> StageResult:
    """Train every student of the configuration, one run per seed.

    Returns:
        Counts of images, steps and runs. Each run's student is
        ``runs/<name>-<seed>/model.safetensors``.
    """
    stage = _prepare(config)
    store, ids, runs = stage.store, stage.ids, config.runs()
    groups = run_groups(runs, store, share=config.share_teacher)
    open_groups = [g for g in groups if any(not is_finished(store.run(run.name)) for run in g)]
    at_once = _at_once(config, len(open_groups), connect=bool(open_groups))
    total = config.training.steps * max(len(open_groups), 1)
    with Progress("distill", total, enabled=config.progress) as bar:
        results = _side_by_side(
            [
                partial(stage.train, group, overwrite=overwrite, bar=bar, at_once=at_once)
                for group in groups
            ],
            at_once,
        )
    done = {name: result for found in results for name, result in found.items()}
    lines = [_summary(run, done[run.name]) for run in runs]
    return StageResult(
        "distill",
        tuple(f"runs/{run.name}" for run in runs),
        store.storage.at("runs").root,
        {"images": len(ids), "steps": config.training.steps, "runs": len(runs)},
        f"{len(ids)} images, {config.training.steps} steps; " + "; ".join(lines),
        all(result.was_finished for result in done.values()),
    )


Results = dict[str, RunResult]


def _side_by_side(calls: list[Callable[[], Results]], at_once: int) -> list[Results]:
    """Make the calls one by one, or in threads that each wait for a run on the cluster.

    A run that fails does not stop the others; its error is raised when they have ended. Ctrl-C
    ends them all by closing the connection to the cluster.
    """
    if at_once == 1:  # in the main thread, where Ctrl-C ends a run that is computed here
        return _one_by_one(calls)
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


def _one_by_one(calls: list[Callable[[], Results]]) -> list[Results]:
    results: list[Results] = []
    failed: list[Exception] = []
    for call in calls:
        try:
            results.append(call())
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]
    return results


def _at_once(config: DistillConfig, runs: int, *, connect: bool) -> int:
    """How many runs to train side by side; where they are to start, once one finds room."""

    def make(nodes: Nodes) -> WorkerPlan:
        return plan(config.training, nodes, config.compute_on)

    def count(nodes: Nodes) -> int:
        wanted = max(runs, 1)
        return config.at_once or side_by_side(config.training, wanted, nodes, config.compute_on)

    if not connect:
        return count(dry_nodes(config))
    if plan_one_run(config, make).here:
        at_once = count(nodes_here())
        if at_once == 1:
            return 1
        plan_on_cluster(config, make)
    return count(cluster_nodes())


def _prepare(config: DistillConfig) -> "_Stage":
    """Open and check what all runs of a call share."""
    store = Store(config.store)
    coreset = store.open_coreset(config.coreset)
    check_origin(store, coreset)
    ids = selected_ids(coreset)
    if lost := withdrawals(coreset.manifest):
        said = f"coreset '{config.coreset}': {describe_loss(lost)}; {len(ids)} are left."
        console.print(said, markup=False, soft_wrap=True)
    distils = any(run.objective.distil for run in config.runs())
    teacher = find_teacher(config) if distils else None
    check_students(config, teacher.outline() if teacher is not None else None)
    if teacher is not None and config.cache:
        teacher = open_cache(config, teacher, ids)
    return _Stage(config, store, coreset, ids, teacher)


def check_students(config: DistillConfig, teacher: Encoder | None) -> None:
    """Build every objective without weights, so that what cannot be trained is refused early.

    Args:
        config: Names the students.
        teacher: The teacher, where one is followed; it may be on the meta device.

    Raises:
        UsageError: A student cannot be trained, or cannot follow that teacher.
    """
    with torch.device("meta"):
        for run in config.runs():
            encoder = create_encoder(run.model, image_size=run.image_size)
            student = MaskedImageModel(encoder, config.decoder)
            followed = teacher if run.objective.distil else None
            DistillationObjective(student, followed, run.objective)


def plan_distill(config: DistillConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`distill` would do."""
    stage = _prepare(config)
    store, coreset, ids, teacher = stage.store, stage.coreset, stage.ids, stage.teacher
    runs = config.runs()
    replaced = {run.name for run in runs if stage.claim(run, stage.initial(run)).check(overwrite)}
    out = Plan("distill")
    out.add("coreset", f"{len(ids)} images of {coreset.rows}, {coreset.storage.root}")
    if teacher is not None:
        out.add("teacher", teacher.describe())
        if isinstance(teacher, CachedWeights):
            computed = "" if teacher.computed_in == "float32" else f", in {teacher.computed_in}"
            out.add("teacher cache", f"{teacher.folder}{computed}")
    out.add("student", ", ".join(dict.fromkeys(run.model for run in runs)))
    out.add("steps", config.training.describe(len(ids)))
    groups = run_groups(runs, store, share=config.share_teacher)
    at_once = _at_once(config, len(groups), connect=False)
    where = describe_plan(
        config, lambda nodes: plan(config.training, nodes, config.compute_on, at_once)
    )
    out.add("resources", f"{at_once} run(s) at once, each {where}")
    for group in groups:
        shared = f", with {len(group) - 1} more on one teacher pass" if len(group) > 1 else ""
        for run in group:
            finished = is_finished(store.run(run.name)) and run.name not in replaced
            done = "done" if finished else "to do"
            out.add(run.name, f"{run.objective.preset}{shared}, {done}")
    return out


@dataclass(frozen=True)
class _Stage:
    """What all runs of one call share."""

    config: DistillConfig
    store: Store
    coreset: Table
    ids: tuple[str, ...]
    teacher: Weights | None

    def train(
        self, group: list[StudentRun], *, overwrite: bool, bar: Progress, at_once: int
    ) -> Results:
        """Train the runs of a group together, and return their results by name."""
        config, store = self.config, self.store
        initial = tuple(self.initial(run) for run in group)
        job = DistillationJob(
            store=store.root,
            runs=tuple(group),
            teacher=self.teacher if any(run.objective.distil for run in group) else None,
            image_ids=self.ids,
            settings=config.training,
            decoder=config.decoder,
            masks=config.masks,
            seed=group[0].seed,
            initial=initial,
        )
        members = [
            PlannedRun(
                prefix="" if len(group) == 1 else f"{run.name}/",
                claim=self.claim(run, start),
                config=config.alone(run),
                export=partial(_export, job, index),
                inputs=(self.coreset_input(),),
            )
            for index, (run, start) in enumerate(zip(group, initial, strict=True))
        ]
        results = train_together(
            job, members, stage="distill", overwrite=overwrite, bar=bar, at_once=at_once
        )
        return {run.name: result for run, result in zip(group, results, strict=True)}

    def coreset_input(self) -> RunInput:
        """Return what a run's record says of the coreset."""
        pool = self.store.open_pool()
        facts = {
            "rows": len(self.ids),
            "pool_rows": pool.rows,
            "pool_sha256": pool.digest,
            "selection": read_configuration(self.coreset.storage),
            "store": self.store.root,
        }
        name, where = f"coreset {self.config.coreset}", self.coreset.storage.root
        return RunInput(name, self.coreset.digest, where, "training", facts)

    def initial(self, run: StudentRun) -> Weights | None:
        """Find the weights that a run starts from."""
        return find_initial(self.store, run.model, run.initial_weights, run.image_size)

    def claim(self, run: StudentRun, initial: Weights | None) -> Claim:
        """Return the claim on a run's folder."""
        weights, about = {}, {"inputs.coreset": f"{len(self.ids)} images of {self.coreset.rows}"}
        if initial:
            weights["initial"] = initial.digest
        if run.objective.distil:
            assert self.teacher is not None
            weights |= self.teacher.identity("teacher")
            about["weights.teacher"] = self.teacher.path.rpartition("/")[2]
        tables = {"coreset": self.coreset, "pool": self.store.open_pool()}
        wanted = fingerprint(
            self.config.alone(run),
            weights=weights,
            inputs={name: table.digest for name, table in tables.items()},
            without=("teacher", "coreset"),
        )
        if run.objective.distil and isinstance(self.teacher, CachedWeights):
            wanted = with_precision(wanted, self.teacher.computed_in, "cache_computed_in")
        storage = self.store.run(run.name)
        explained = explain_withdrawal(storage, tables)
        return Claim(storage, wanted, "distill", "a run", about=about, explained=explained)


def _export(job: DistillationJob, index: int, task: TrainingTask, folder: Path) -> Encoder:
    """Write the files of a finished run, and return its student."""
    assert isinstance(task, DistillationTask)
    objective = task.each(index)
    encoder = objective.student.encoder
    save_weights(encoder, str(folder / WEIGHTS), {"objective": objective.settings.preset})
    picture = folder / "reconstructions.png"
    draw_reconstructions(objective, task.masks, task.seed, job.images(task), picture)
    return encoder


def weight_spread(history: list[dict[str, float]]) -> float | None:
    """Mean over the run of the consistency weight's spread over a batch; None without a teacher."""
    spreads = [row["weight_std"] for row in history if "weight_std" in row]
    return sum(spreads) / len(spreads) if spreads else None


def _summary(run: StudentRun, result: RunResult) -> str:
    name, spread = run.name, weight_spread(result.history)
    if spread is not None and spread <= INERT_SPREAD and run.objective.weighting != "fixed":
        console.print(
            f"warning: {name}: inert weight: the consistency weight's spread is {spread:.4f}, not "
            f"above {INERT_SPREAD}: the run is plain distillation. Use centring, level 'token' or "
            "weighting 'batch-normalised'.",
            markup=False,
            soft_wrap=True,
        )
    state = "already done, " if result.was_finished else ""
    weight = "" if spread is None else f", weight spread {spread:.3f}"
    return f"{name}: {state}{result.losses()}{weight}"


STAGE = Stage(stages.DISTILL, DistillConfig, distill, plan_distill)
