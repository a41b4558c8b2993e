"""Running a training task on Ray Train: workers, checkpoints, restarts.

A run's name carries its fingerprint, because Ray Train continues whatever it finds under a name.
"""

import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from echostill.platform import runtime
from echostill.platform.errors import EchostillError
from echostill.platform.progress import Progress
from echostill.platform.runs import Fingerprint
from echostill.platform.staging import StagedImages
from echostill.platform.storage import Storage
from echostill.platform.tracking import Tracker, TrackingCallback
from echostill.platform.training import (
    Place,
    TrainingSettings,
    TrainingState,
    TrainingTask,
    train,
)

STATE_FILE = "state.pt"
RESTARTS = 3


class TrainingJob(Protocol):
    """What a run trains: built anew on every worker. Must be picklable."""

    @property
    def settings(self) -> TrainingSettings:
        """Optimiser, schedule, pace."""
        ...

    @property
    def seed(self) -> int:
        """Seed of order, crops, masks and initial weights."""
        ...

    def build(self) -> tuple[TrainingTask, StagedImages]:
        """Build the task and open the images."""
        ...

    def task(self) -> TrainingTask:
        """Build the task alone, its weights set by the seed."""
        ...

    def on_checkpoint(self, task: TrainingTask, state: TrainingState) -> None:
        """Called on the first worker at every checkpoint, for what a job keeps besides."""
        ...


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its final weights and the logged metrics."""

    weights: dict[str, Any]
    history: list[dict[str, float]]


def plan(
    settings: TrainingSettings, cpus: float, gpus: float, at_once: int = 1
) -> runtime.WorkerPlan:
    """Plan the workers of a training run: one GPU each where there are any, else shared CPUs.

    Args:
        settings: Names the workers, and the threads where they are fixed.
        cpus: CPUs of the cluster.
        gpus: GPUs of the cluster.
        at_once: Runs that share the cluster.
    """
    workers = settings.workers * at_once
    threads = settings.threads or max(int(cpus // workers), 1)
    gpu = 1.0 if gpus >= workers else 0.0
    share = 1.0 if gpu else float(min(threads, max(int(cpus // workers), 1)))
    if cpus < workers:
        share = int(cpus / workers * 100) / 100
    return runtime.WorkerPlan(settings.workers, share, threads, gpu)


def runs_at_once(settings: TrainingSettings, runs: int, cpus: float, gpus: float) -> int:
    """How many runs to train side by side: small models gain more from that than from threads."""
    units = gpus if gpus >= settings.workers else cpus
    return max(min(runs, int(units // (settings.workers * (settings.threads or 1)))), 1)


def run_training(
    job: TrainingJob,
    storage: Storage,
    fingerprint: Fingerprint,
    tracker: Tracker,
    bar: Progress,
    at_once: int = 1,
) -> TrainedRun:
    """Train on the connected Ray, continuing from the last checkpoint where there is one.

    Args:
        job: What to train.
        storage: Folder of the run; checkpoints go to ``train/`` in it.
        fingerprint: What the run depends on.
        tracker: Where metrics are recorded.
        bar: Progress of this run, or of several.
        at_once: Runs that share the cluster.

    Raises:
        EchostillError: Training failed; checkpoints are kept and the same command continues.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    where = plan(job.settings, *runtime.cluster_resources(), at_once)
    resources = {"CPU": where.cpus_per_worker}
    if where.gpus_per_worker:
        resources["GPU"] = where.gpus_per_worker
    name = storage.root.rpartition("/")[2]
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "threads": where.threads},
        torch_config=TorchConfig(backend="nccl" if where.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=where.workers,
            use_gpu=bool(where.gpus_per_worker),
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"run-{fingerprint.digest[:16]}",
            storage_path=storage.locate("train"),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=RESTARTS),
            callbacks=[TrackingCallback(tracker, bar.channel(name))],
        ),
    )
    try:
        result = trainer.fit()
    except Exception as error:  # Ray wraps whatever a worker raised
        raise EchostillError(_reason(error)) from error
    if result.checkpoint is None:
        raise EchostillError(f"training in '{storage.root}' ended without a checkpoint.")
    with result.checkpoint.as_directory() as folder:
        saved = _load(Path(folder) / STATE_FILE)
    return TrainedRun(saved["task"], saved["history"])


def _reason(error: BaseException) -> str:
    causes = getattr(error, "worker_failures", None) or {}
    root: BaseException = next(iter(causes.values()), error)
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line for line in str(root).strip().splitlines() if line.strip()]
    text = lines[-1].strip() if lines else type(root).__name__
    return f"training failed: {text} Checkpoints are kept: the same command continues."


def _load(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    saved["history"] = json.loads(saved["history"])
    return saved


def _worker(config: dict[str, Any]) -> None:
    """The function each Ray Train worker runs."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    job: TrainingJob = config["job"]
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    place = Place(context.get_world_rank(), context.get_world_size(), get_device())
    torch.manual_seed(job.seed)
    task, images = job.build()
    state = TrainingState()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            saved = _load(Path(folder) / STATE_FILE)
        task.load_state_dict(saved["task"])
        state = TrainingState(saved["step"], saved["optimiser"], saved["history"])
    model = prepare_model(task, parallel_strategy_kwargs={"find_unused_parameters": True})
    reported = len(state.history)

    def on_checkpoint(current: TrainingState) -> None:
        nonlocal reported
        rows, reported = current.history[reported:], len(current.history)
        metrics = {"rows": rows, "step": current.step}
        if place.rank != 0:
            ray.train.report(metrics)
            return
        job.on_checkpoint(task, current)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(
                {
                    "task": task.state_dict(),
                    "optimiser": current.optimiser,
                    "step": current.step,
                    "history": json.dumps(current.history),
                },
                os.path.join(folder, STATE_FILE),
            )
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    train(task, model, images, job.settings, job.seed, state, place, on_checkpoint)
