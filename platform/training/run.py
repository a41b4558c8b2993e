"""Training runs from claim to manifest, for pretraining, the proxy and distillation."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.cluster.waiting import plan_on_cluster, plan_one_run
from echostill.platform.config import ComputeConfig
from echostill.platform.errors import EchostillError
from echostill.platform.models import Encoder
from echostill.platform.progress import Progress
from echostill.platform.tables.fingerprint import Claim, Fingerprint
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import finish_run, read_manifest, save_configuration
from echostill.platform.training.loop import TrainingTask
from echostill.platform.training.ray import (
    BAD_BATCH,
    TrainedRun,
    TrainingJob,
    plan,
    run_training,
)
from echostill.platform.training.tracking import Logged, RunInput, Tracker

WEIGHTS = "model.safetensors"
METRICS = "metrics.jsonl"
PRECISION = "precision.json"  # of matrix products, by step; of a run that is not all in float32
GROUP = "group.json"  # names of the runs that are trained together with this one
COMMON = ("step", "learning_rate", "epoch")  # logged for all members of a group alike

# Writes a run's files into a local folder, given the trained task, and returns the model to record.
Export = Callable[[TrainingTask, Path], Encoder | None]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a training: alone, or one of several that are trained together."""

    prefix: str  # of the names of its logged values
    claim: Claim  # on its folder, whose last part is its name
    config: ComputeConfig
    export: Export
    inputs: tuple[RunInput, ...] = ()  # what its page in MLflow says that it was made from

    @property
    def storage(self) -> Storage:
        """Folder of the run."""
        return self.claim.storage

    @property
    def wanted(self) -> Fingerprint:
        """What the run depends on."""
        return self.claim.wanted

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.storage.root.rpartition("/")[2]

    def rows(self, history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """Return its own logged values, under their plain names."""
        if not self.prefix:
            return list(history)
        return [
            {
                key.removeprefix(self.prefix): value
                for key, value in row.items()
                if key in COMMON or key.startswith(self.prefix)
            }
            for row in history
        ]


@dataclass(frozen=True)
class RunResult:
    """A finished run: where it is and what it logged."""

    storage: Storage
    history: list[dict[str, float]]
    was_finished: bool

    def losses(self) -> str:
        """Describe how the loss changed."""
        return f"loss {self.history[0]['loss']:.4f} -> {self.history[-1]['loss']:.4f}"


def is_finished(storage: Storage) -> bool:
    """Return whether a run is finished."""
    return read_manifest(storage) is not None


def read_history(storage: Storage) -> list[dict[str, float]]:
    """Return the metrics that a finished run logged, a mapping per logged step."""
    return [json.loads(line) for line in storage.read(METRICS).decode().splitlines()]


def train_run(
    job: TrainingJob, claim: Claim, config: ComputeConfig, *, export: Export, overwrite: bool
) -> RunResult:
    """Train a job, continuing where an earlier attempt stopped, and export the result.

    Args:
        job: What to train.
        claim: On the run's folder; the folder's last part is the run's name.
        config: Configuration of the stage, kept beside the run and recorded in MLflow.
        export: Writes the run's files.
        overwrite: Replace a run with another fingerprint.
    """
    member = PlannedRun("", claim, config, export)
    return train_together(job, [member], stage=claim.stage, overwrite=overwrite)[0]


def train_together(
    job: TrainingJob,
    members: Sequence[PlannedRun],
    *,
    stage: str,
    overwrite: bool,
    bar: Progress | None = None,
    at_once: int = 1,
) -> list[RunResult]:
    """Train a job whose task holds one or several runs, and export each.

    The checkpoints of a group are kept in the folder of its first run until all are exported.

    Args:
        job: What to train.
        members: The runs, in the order in which the group was started.
        stage: Name of the stage.
        overwrite: Replace runs with another fingerprint.
        bar: Progress shared with other runs; one of its own where None.
        at_once: Trainings that share the cluster.
    """
    for member in members:
        member.claim.take(overwrite)
    finished = [is_finished(member.storage) for member in members]
    if not all(finished):
        _train(job, members, finished, stage=stage, bar=bar, at_once=at_once)
    return [
        RunResult(member.storage, read_history(member.storage), done)
        for member, done in zip(members, finished, strict=True)
    ]


def _train(
    job: TrainingJob,
    members: Sequence[PlannedRun],
    finished: Sequence[bool],
    *,
    stage: str,
    bar: Progress | None,
    at_once: int,
) -> None:
    config = members[0].config
    place = plan_one_run if at_once == 1 else plan_on_cluster
    where = place(config, lambda nodes: plan(job.settings, nodes, config.compute_on, at_once))
    for member in members:
        save_configuration(member.storage, _resolved(member.config, where))
        if len(members) > 1:
            names = json.dumps([one.name for one in members])
            member.storage.write(GROUP, names.encode())
    open_members = [m for m, done in zip(members, finished, strict=True) if not done]
    trackers = [
        Tracker.start(
            config.tracking, config.store, member.storage, member.name, member.wanted.configuration
        )
        for member in open_members
    ]
    for member, tracker in zip(open_members, trackers, strict=True):
        tracker.inputs(member.inputs)
    logged = [
        Logged(member.rows, tracker, member.name)
        for member, tracker in zip(open_members, trackers, strict=True)
    ]
    digests = [member.wanted.digest for member in members]
    digest = digests[0] if len(digests) == 1 else sha256("\n".join(digests).encode())
    owner = members[0].storage
    try:
        if bar is None:
            with Progress(stage, job.settings.steps, enabled=config.progress) as own:
                run = run_training(job, owner, digest, logged, own, where)
        else:
            run = run_training(job, owner, digest, logged, bar, where)
    except EchostillError:
        for tracker in trackers:
            tracker.finish("FAILED")
        raise
    task = job.task_to_export()
    task.load_state_dict(run.weights)
    task.eval()
    for member, tracker in zip(open_members, trackers, strict=True):
        _export(member, tracker, task, run, stage)
    owner.delete("train")  # checkpoints serve resuming alone


def _resolved(config: ComputeConfig, where: WorkerPlan) -> ComputeConfig:
    """Return the configuration with the workers and threads that a run of its own computes with.

    They follow the nodes, and the last digits of the weights follow them.
    """
    training = getattr(config, "training", None)
    if training is None:  # the proxy's are fixed (ProxySettings.paced)
        return config
    workers = where.workers if training.workers is None else training.workers
    on_device = training.crops_on == "device" or (
        training.crops_on == "auto" and bool(where.gpus_per_worker)
    )
    resolved = training.model_copy(
        update={
            "workers": workers,
            "threads": where.threads,
            "crops_on": "device" if on_device else "cpu",
        }
    )
    return config.model_copy(update={"training": resolved})


def _export(
    member: PlannedRun,
    tracker: Tracker,
    task: TrainingTask,
    run: TrainedRun,
    stage: str,
) -> None:
    storage = member.storage
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in member.rows(run.history))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / METRICS).write_text(lines)
        if any(kind != "float32" for _, kind in run.precisions):
            rows = [{"after_step": step, "type": kind} for step, kind in run.precisions]
            (Path(folder) / PRECISION).write_text(json.dumps(rows))
        model = member.export(task, Path(folder))
        for path in sorted(Path(folder).iterdir()):
            storage.write(path.name, path.read_bytes())
            tracker.artifact(str(path))
    if model is not None:
        tracker.model(model, member.name)
    kept = ("fingerprint.json", "manifest.json", "mlflow.json", "configuration.json", GROUP)
    files = [file for file in storage.list() if file not in kept and not file.startswith(BAD_BATCH)]
    finish_run(storage, stage=stage, files=files, fingerprint=member.wanted)
    tracker.finish()
