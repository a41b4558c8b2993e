"""One training run from claim to manifest: shared by pretraining, the proxy and distillation."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from echostill.platform import runtime
from echostill.platform.config import StageConfig
from echostill.platform.errors import EchostillError
from echostill.platform.progress import Progress
from echostill.platform.ray_training import TrainingJob, run_training
from echostill.platform.runs import Fingerprint, claim
from echostill.platform.storage import Storage
from echostill.platform.store import finish_run, read_manifest, save_configuration
from echostill.platform.tracking import Tracker
from echostill.platform.training import TrainingTask

WEIGHTS = "model.safetensors"
METRICS = "metrics.jsonl"

# Writes a run's files into a local folder, given the trained task.
Export = Callable[[TrainingTask, Path], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run: where it is and what it logged."""

    storage: Storage
    history: list[dict[str, float]]
    was_finished: bool

    def losses(self) -> str:
        """Say how the loss moved."""
        return f"loss {self.history[0]['loss']:.4f} -> {self.history[-1]['loss']:.4f}"


def is_finished(storage: Storage) -> bool:
    """Return whether a run is finished."""
    return read_manifest(storage) is not None


def read_history(storage: Storage) -> list[dict[str, float]]:
    """Return the metrics that a finished run logged, a mapping per logged step."""
    return [json.loads(line) for line in storage.read(METRICS).decode().splitlines()]


def train_run(
    job: TrainingJob,
    storage: Storage,
    wanted: Fingerprint,
    config: StageConfig,
    *,
    stage: str,
    export: Export,
    overwrite: bool,
    bar: Progress | None = None,
    at_once: int = 1,
) -> RunResult:
    """Train a job, continuing where an earlier attempt stopped, and export what it made.

    Args:
        job: What to train.
        storage: The run's folder; its last part is the run's name.
        wanted: What the run depends on.
        config: Configuration of the stage, kept beside the run and recorded in MLflow.
        stage: Name of the stage.
        export: Writes the run's files.
        overwrite: Replace a run with another fingerprint.
        bar: Progress shared with other runs; one of its own where None.
        at_once: Runs that share the cluster.
    """
    claim(storage, wanted, "a run", overwrite)
    if is_finished(storage):
        return RunResult(storage, read_history(storage), True)
    save_configuration(storage, config)
    job.build()  # stages the images once, before workers ask for them
    runtime.connect(config.address)
    name = storage.root.rpartition("/")[2]
    tracker = Tracker.start(config.tracking, config.store, storage, name, wanted.configuration)
    try:
        if bar is None:
            with Progress(stage, job.settings.steps, enabled=config.progress) as own:
                run = run_training(job, storage, wanted, tracker, own)
        else:
            run = run_training(job, storage, wanted, tracker, bar, at_once)
    except EchostillError:
        tracker.finish("FAILED")
        raise
    task = job.task()
    task.load_state_dict(run.weights)
    lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in run.history)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / METRICS).write_text(lines)
        export(task.eval(), Path(folder))
        for path in sorted(Path(folder).iterdir()):
            storage.write(path.name, path.read_bytes())
            tracker.artifact(str(path))
    kept = ("fingerprint.json", "manifest.json", "mlflow.json", "configuration.json")
    files = [file for file in storage.list() if file not in kept]
    finish_run(storage, stage=stage, files=files, fingerprint=wanted)
    storage.delete("train")  # checkpoints serve resuming alone
    tracker.finish()
    return RunResult(storage, run.history, False)
