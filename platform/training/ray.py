"""Running a training task on Ray Train: workers, checkpoints, restarts.

A run's name carries its fingerprint, because Ray Train continues whatever it finds under a name.
One worker on this machine runs in this process (Ray Train's local mode), which starts no others.
"""

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from echostill.platform import runtime
from echostill.platform.cluster.nodes import Nodes
from echostill.platform.cluster.plans import (
    Device,
    WorkerPlan,
    gpus_for,
    plan_replicas,
    runs_at_once,
)
from echostill.platform.cluster.sight import SharedWord, shared_word
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.lazy import loading
from echostill.platform.progress import Progress
from echostill.platform.ray_errors import cause_of
from echostill.platform.tables.storage import Storage
from echostill.platform.training import parallel
from echostill.platform.training.batches import Pace
from echostill.platform.training.checkpoints import (
    FOLDER,
    STATE_FILE,
    load_state,
    newest,
    run_name,
    save_here,
)
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.loop import (
    Totals,
    TrainingState,
    TrainingTask,
    train,
)
from echostill.platform.training.measures import NonFiniteLossError
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages
from echostill.platform.training.tracking import Logged

BAD_BATCH = "bad-batch"
RESTARTS = 3
NOTE_SECONDS = 10.0  # between words about the pace, so that a starved GPU shows in the first minute


class TrainingJob(Protocol):
    """What a run trains. It is pickled, and built on every worker."""

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

    def task_to_export(self) -> TrainingTask:
        """Build the task to take trained weights; what is not trained needs none."""
        ...

    def on_checkpoint(self, weights: dict[str, Tensor], state: TrainingState) -> None:
        """Called on the first worker at every checkpoint, for what a job keeps in addition."""
        ...


@dataclass(frozen=True)
class TrainedRun:
    """A finished training: its final weights and the logged metrics."""

    weights: dict[str, Any]
    history: list[dict[str, float]]
    precisions: tuple[tuple[int, str], ...] = ()  # steps before it, type of matrix products


def plan(
    settings: TrainingSettings, nodes: Nodes, device: Device = "auto", at_once: int = 1
) -> WorkerPlan:
    """Plan the workers of a training run: one GPU each where there are any, else shared CPUs.

    Args:
        settings: Names the workers, and the threads where they are fixed.
        nodes: Of the cluster.
        device: Where to compute.
        at_once: Runs that share the cluster.

    Raises:
        UsageError: The workers do not fit the nodes.
    """
    fewest, most = settings.worker_range
    if settings.workers is None:
        fewest = most = gpus_for(at_once, settings.batch_size, nodes, device)
    return plan_replicas(
        fewest, most, nodes, device=device, threads=settings.threads, at_once=at_once
    )


def side_by_side(
    settings: TrainingSettings, runs: int, nodes: Nodes, device: Device = "auto"
) -> int:
    """Return how many of so many runs to train side by side."""
    return runs_at_once(
        runs, settings.worker_range[1], nodes, device=device, threads=settings.threads
    )


def run_training(
    job: TrainingJob,
    storage: Storage,
    digest: str,
    logged: Sequence[Logged],
    bar: Progress,
    where: WorkerPlan,
) -> TrainedRun:
    """Train on the connected Ray, or here; continue from the last checkpoint where there is one.

    Args:
        job: What to train.
        storage: Folder of the run; checkpoints go to ``train/`` in it.
        digest: Of what the training depends on.
        logged: Where metrics are recorded.
        bar: Progress of this run, or of several.
        where: Workers and what each reserves, as planned by :func:`plan`.

    Raises:
        EchostillError: Training failed; checkpoints are kept and the same command continues.
    """
    settings = job.settings
    if settings.sharding == "full" and where.workers == 1:
        raise UsageError("sharding 'full' spreads a model over workers: give training.workers.")
    storage.delete(BAD_BATCH)
    config = {"job": job, "threads": where.threads, "storage": storage, "digest": digest}
    try:
        train_on = _train_here if where.here else _train_on_workers
        saved = train_on(config, logged, bar, where)
    except Exception as error:  # Ray wraps whatever a worker raised
        cause = cause_of(error)
        raise type(cause)(
            f"training failed: {cause} Checkpoints are kept: the same command continues."
        ) from error
    bad = storage.list(BAD_BATCH)
    if bad:
        message = json.loads(storage.read(bad[0]))["message"]
        raise EchostillError(
            f"training failed: {message} Written down: '{storage.locate(bad[0])}'."
        )
    if saved is None:
        raise EchostillError(f"training in '{storage.root}' ended without a checkpoint.")
    return TrainedRun(
        {**saved["task"], **(saved.get("average") or {})},
        saved["history"],
        tuple((step, kind) for step, kind in saved.get("precisions", ())),
    )


def _train_here(
    config: dict[str, Any], logged: Sequence[Logged], bar: Progress, where: WorkerPlan
) -> dict[str, Any] | None:
    """Train in this process; return the last checkpoint."""
    runtime.set_environment()
    with loading():
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from echostill.platform.training.callback import TrackingCallback

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    storage, digest = config["storage"], config["digest"]
    channel = bar.here(_name_of(storage))
    callback = TrackingCallback(logged, channel)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={**config, "callback": callback, "channel": channel},
        scaling_config=ScalingConfig(num_workers=0),  # Ray's sign for its local mode
        run_config=RunConfig(name=run_name(digest)),
    )
    with _own_settings():
        trainer.fit()
    return newest(storage, digest)


@contextmanager
def _own_settings() -> Iterator[None]:
    """Give torch back, after a training, the settings that it had in this process before."""
    threads = torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
        torch.backends.cudnn.benchmark = benchmark


def _train_on_workers(
    config: dict[str, Any], logged: Sequence[Logged], bar: Progress, where: WorkerPlan
) -> dict[str, Any] | None:
    """Train on Ray's workers; return the last checkpoint."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from echostill.platform.training.callback import TrackingCallback

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    settings, storage = config["job"].settings, config["storage"]
    resources = {"CPU": where.cpus_per_worker}
    if where.gpus_per_worker:
        resources["GPU"] = where.gpus_per_worker
    channel = bar.channel(_name_of(storage))
    with shared_word(storage.at(FOLDER)) as word:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={**config, "channel": channel, "word": word},
            torch_config=TorchConfig(backend="nccl" if where.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=where.workers if settings.workers is None else settings.workers,
                use_gpu=bool(where.gpus_per_worker),
                resources_per_worker=resources,
                elastic_resize_monitor_interval_s=settings.resize_seconds,
            ),
            run_config=RunConfig(
                name=run_name(config["digest"]),
                storage_path=storage.locate(FOLDER),
                checkpoint_config=CheckpointConfig(num_to_keep=settings.keep),
                # Nodes that are taken away announced do not count as failures, however often.
                failure_config=FailureConfig(max_failures=RESTARTS, max_preemption_failures=-1),
                callbacks=[TrackingCallback(logged, channel)],
            ),
        )
        return _read(trainer.fit().checkpoint)


def _name_of(storage: Storage) -> str:
    return storage.root.rpartition("/")[2]


def _read(checkpoint: Any) -> dict[str, Any] | None:
    """Read a checkpoint of Ray Train's, if there is one."""
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return load_state(Path(folder) / STATE_FILE)


def _restore(task: TrainingTask, storage: Storage, digest: str) -> TrainingState:
    """Load the last checkpoint into the task, if there is one, and return its state."""
    import ray.train

    # Ray Train knows its own; one that was written in local mode is found where it lies.
    saved = _read(ray.train.get_checkpoint()) or newest(storage, digest)
    if saved is None:
        return TrainingState()
    task.load_state_dict(saved["task"])
    return TrainingState(
        saved["step"],
        saved["optimiser"],
        saved["history"],
        saved["average"],
        saved["scaler"],
        Totals(saved["totals"]),
        # Checkpoints of earlier releases have none of these.
        dict(saved.get("norms", {})),
        [(step, kind) for step, kind in saved.get("precisions", ())],
    )


def _worker(config: dict[str, Any]) -> None:
    """The function each Ray Train worker runs, and this process in local mode."""
    import ray.train
    from ray.train.torch import get_device

    job: TrainingJob = config["job"]
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    worker = TrainingWorker(context.get_world_rank(), context.get_world_size(), get_device())
    torch.manual_seed(job.seed)
    word: SharedWord | None = config.get("word")
    if word is not None:  # this node may have joined after all others were asked
        word.prove(ray.util.get_node_ip_address())
    task, images = job.build()
    storage, digest, callback = config["storage"], config["digest"], config.get("callback")
    state = _restore(task, storage, digest)
    model = parallel.wrap(task, job.settings, worker)
    parallel.shard_state(task, job.settings, state)
    reported = len(state.history)
    pace = Pace(job.settings, worker.device, state.step)

    def usage(step: int) -> dict[str, float]:
        return {**runtime.process_usage(), **pace.so_far(step)}

    def on_logged(step: int) -> None:
        note = pace.note(step, NOTE_SECONDS) if worker.rank == 0 else None
        if note is not None:
            config["channel"].send(step, note)

    def on_checkpoint(current: TrainingState) -> None:
        nonlocal reported
        saved = parallel.whole_state(task, current)  # on every worker: shards are gathered
        rows, reported = current.history[reported:], len(current.history)
        metrics = {"rows": rows, "step": current.step, "usage": usage(current.step)}
        if callback is not None:  # Ray Train's local mode keeps no checkpoint and calls nobody
            job.on_checkpoint(saved["task"], current)
            save_here(storage, digest, saved, job.settings.keep)
            callback.after_report(None, [metrics], None)
            return
        if worker.rank != 0:
            ray.train.report(metrics)
            return
        job.on_checkpoint(saved["task"], current)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(saved, os.path.join(folder, STATE_FILE))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    try:
        train(
            task,
            model,
            images,
            job.settings,
            job.seed,
            state,
            worker,
            on_checkpoint,
            leaving=lambda: ray.train.get_preemption_info() is not None,
            on_logged=on_logged,
            waiting=pace.waiting,
        )
    except NonFiniteLossError as error:
        # Raised on all workers at the same step. A worker that raises is started again, to the same
        # end: so it ends in order, and the driver raises.
        name = f"{BAD_BATCH}/step-{error.batch['step']}-worker-{worker.rank}.json"
        storage.write(name, json.dumps(error.batch, indent=1).encode())
        stopped = {"rows": [], "step": state.step, "usage": {}, "non_finite": True}
        if callback is not None:
            callback.after_report(None, [stopped], None)
            return
        ray.train.report(stopped)
