"""The record of runs in MLflow: one MLflow run per run, whatever restarts happen.

The MLflow run id is kept beside the run, so that a restart continues the same record.
"""

import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from echostill.platform import runtime
from echostill.platform.lazy import loading
from echostill.platform.models import Encoder
from echostill.platform.preflight.tracking import EXPERIMENT, mlflow_client, needs_server
from echostill.platform.processes import submission
from echostill.platform.progress import console
from echostill.platform.tables.fingerprint import flatten
from echostill.platform.tables.storage import Storage
from echostill.platform.training.mlflow_files import (
    RUN_FILE,
    artifact_location,
    database_uri,
    repair_locations,
)

MAX_PARAMETERS = 100  # MLflow's limit per call
MAX_NAME, MAX_DIGEST = 500, 36  # characters of a dataset's name and digest
JOB_TAG, PAGE_TAG = "ray.submission_id", "ray.dashboard"  # of a run: the job that writes it
PARENT_VARIABLE = "ECHOSTILL_MLFLOW_PARENT"  # id of the run that new runs are nested under
# torch.export keeps the model that it traces in a variable of its module: one at a time.
_exporting = threading.Lock()


@dataclass(frozen=True)
class RunInput:
    """A dataset that a run was made from, as its page in MLflow names it.

    Attributes:
        name: Such as ``coreset default``.
        digest: SHA-256 of its content.
        source: Folder, file or URI where it is.
        context: What it was used for: ``training`` or ``evaluation``.
        facts: More of what the page shows, such as rows and the pool.
    """

    name: str
    digest: str
    source: str
    context: str
    facts: dict[str, Any]


def default_uri(store: str) -> str:
    """The tracking URI used where none is given: an sqlite file in the store."""
    storage = Storage(store)
    if not storage.is_local:
        raise needs_server(store)
    os.makedirs(storage.local_path(), exist_ok=True)
    return database_uri(storage.local_path())


@dataclass(frozen=True)
class Tracker:
    """Writes one run's record. Picklable: it holds the URI and the id, not a connection."""

    uri: str
    run_id: str

    @classmethod
    def start(
        cls, uri: str | None, store: str, storage: Storage, name: str, parameters: dict[str, Any]
    ) -> "Tracker":
        """Open the run's record, making it when the run is new.

        Args:
            uri: Tracking URI, or None for the store's own sqlite file.
            store: The store.
            storage: The run's folder, where the record's id is kept.
            name: Name shown in MLflow.
            parameters: Nested configuration; flattened to dotted keys.
        """
        resolved = uri or default_uri(store)
        if uri is None:  # the store may have been copied or moved since
            repair_locations(Storage(store).local_path(), EXPERIMENT)
        client = mlflow_client(resolved)
        experiment = _experiment(client)
        if storage.exists(RUN_FILE):
            known = json.loads(storage.read(RUN_FILE))
            if uri is None or known["uri"] == resolved:
                with suppress(Exception):  # a deleted record is made anew below
                    client.get_run(known["run_id"])
                    client.update_run(known["run_id"], status="RUNNING")
                    tracker = cls(resolved, known["run_id"])
                    tracker.name_job(name)
                    return tracker
        if experiment is None:
            location = None
            if resolved.startswith("sqlite"):
                location = artifact_location(Storage(store).local_path())
            experiment_id = client.create_experiment(EXPERIMENT, artifact_location=location)
        else:
            experiment_id = experiment.experiment_id
        tags = {"store": store}
        if parent := os.environ.get(PARENT_VARIABLE):
            tags["mlflow.parentRunId"] = parent
        run = client.create_run(experiment_id, run_name=name, tags=tags)
        tracker = cls(resolved, run.info.run_id)
        storage.write(RUN_FILE, json.dumps({"uri": resolved, "run_id": tracker.run_id}).encode())
        tracker.parameters(parameters)
        tracker.name_job(name)
        return tracker

    def name_job(self, name: str) -> None:
        """Let the record and the Ray job that writes it name each other; outside of a job, nothing.

        Args:
            name: The run's name.
        """
        job = submission()
        if job is None:
            return
        page = job.page(runtime.dashboard_url())
        client = mlflow_client(self.uri)
        for key, value in ((JOB_TAG, job.name), (PAGE_TAG, page)):
            if value:
                client.set_tag(self.run_id, key, value)
        where = self.run_id
        if self.uri.startswith(("http://", "https://")):
            experiment = client.get_run(self.run_id).info.experiment_id
            where = f"{self.uri.rstrip('/')}/#/experiments/{experiment}/runs/{self.run_id}"
        console.print(f"MLflow run of {name}: {where}", markup=False, soft_wrap=True)

    def parameters(self, values: dict[str, Any]) -> None:
        """Record parameters, flattened to dotted keys."""
        from mlflow.entities import Param

        items = [Param(key, str(value)[:500]) for key, value in flatten(values).items()]
        client = mlflow_client(self.uri)
        for start in range(0, len(items), MAX_PARAMETERS):
            client.log_batch(self.run_id, params=items[start : start + MAX_PARAMETERS])

    def metrics(self, rows: list[dict[str, float]]) -> None:
        """Record rows of metrics; each row names its step."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [
            Metric(_metric_name(key), float(value), now, int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key != "step"
        ]
        for start in range(0, len(items), 1000):
            mlflow_client(self.uri).log_batch(self.run_id, metrics=items[start : start + 1000])

    def inputs(self, datasets: Sequence[RunInput]) -> None:
        """Record what the run is made from; the same ones again, after a restart, change nothing.

        The store stays where it is: the record has its place, digest and size.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.exceptions import MlflowException

        found = [
            DatasetInput(
                Dataset(
                    each.name[:MAX_NAME],
                    each.digest[:MAX_DIGEST],
                    each.source.partition("://")[0] if "://" in each.source else "local",
                    json.dumps({"uri": each.source}),
                    profile=json.dumps({**each.facts, "sha256": each.digest}),
                ),
                [InputTag("mlflow.data.context", each.context)],
            )
            for each in datasets
        ]
        if not found:
            return
        client = mlflow_client(self.uri)
        try:
            client.log_inputs(self.run_id, found)
        except MlflowException:
            # A run beside this one recorded the same dataset between MLflow's look for it and its
            # insertion. Now it is there; another cause comes again.
            client.log_inputs(self.run_id, found)

    def artifact(self, path: str, folder: str | None = None) -> None:
        """Record a local file."""
        mlflow_client(self.uri).log_artifact(self.run_id, path, folder)

    def model(self, encoder: Encoder, name: str) -> None:
        """Record an encoder that gives pooled features, with its signature, and register it.

        It is kept as an exported graph (``torch.export``): loading it runs no pickled code and
        needs none of ours. A server without a model registry keeps the model with the run alone.
        """
        with loading():
            import mlflow.pytorch
            import numpy as np
            import torch
            from mlflow.exceptions import MlflowException
            from mlflow.models import ModelSignature
            from mlflow.types import Schema, TensorSpec

        size, single = encoder.image_size, np.dtype("float32")
        signature = ModelSignature(
            Schema([TensorSpec(single, (-1, 3, size, size))]),
            Schema([TensorSpec(single, (-1, encoder.dim))]),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model")
            with _exporting:  # two students may end at the same moment
                mlflow.pytorch.save_model(
                    PooledFeatures(encoder),
                    path,
                    signature=signature,
                    # A batch of two: of one, the graph would take its size for fixed.
                    input_example=np.zeros((2, 3, size, size), dtype=np.float32),
                    serialization_format="pt2",
                    pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
                )
            client = mlflow_client(self.uri)
            client.log_artifacts(self.run_id, path, "model")
        registered = f"{EXPERIMENT}-{name}"
        try:
            with suppress(MlflowException):  # it is registered already
                client.create_registered_model(registered)
            run = client.get_run(self.run_id)
            used = [entry.dataset for entry in run.inputs.dataset_inputs]
            client.create_model_version(
                registered,
                f"{run.info.artifact_uri}/model",
                run_id=self.run_id,
                tags={f"made from {dataset.name}": dataset.digest for dataset in used},
            )
        except MlflowException as error:
            logging.getLogger(__name__).warning("the model is not registered: %s", error)

    def finish(self, status: str = "FINISHED") -> None:
        """Close the record with a status."""
        mlflow_client(self.uri).set_terminated(self.run_id, status)


@contextmanager
def nested_under(tracker: Tracker) -> Iterator[None]:
    """Nest the records that are started meanwhile; what fails, also ends this one as failed."""
    before = os.environ.get(PARENT_VARIABLE)
    os.environ[PARENT_VARIABLE] = tracker.run_id
    try:
        yield
    except BaseException:
        tracker.finish("FAILED")
        raise
    finally:
        if before is None:
            del os.environ[PARENT_VARIABLE]
        else:
            os.environ[PARENT_VARIABLE] = before


def _metric_name(name: str) -> str:
    """Replace what MLflow refuses in a name; organs and devices come from the data."""
    return re.sub(r"[^\w\-. /:]", "_", name)


def _experiment(client: Any) -> Any:
    """Return our experiment, restored where someone deleted it; None where there is none yet."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
        console.print(
            f"warning: the MLflow experiment '{EXPERIMENT}' was deleted; it has been restored with "
            "its runs, to record this run.",
            markup=False,
            soft_wrap=True,
        )
    return experiment


class PooledFeatures(nn.Module):
    """An encoder as a function of pixels alone: (B, 3, S, S) in [0, 1] to (B, D)."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the pooled features."""
        pooled: Tensor = self.encoder(pixels).pooled
        return pooled


Rows = Callable[[Sequence[dict[str, float]]], list[dict[str, float]]]


@dataclass(frozen=True)
class Logged:
    """Which of the logged values belong to a run, where they are recorded, and the run's name."""

    rows: Rows
    tracker: Tracker
    name: str = "run"
