"""One record per run, in an sqlite file and on a real MLflow server."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch

from echostill.platform.models import create_encoder
from echostill.platform.processes import VARIABLE
from echostill.platform.tables.storage import Storage
from echostill.platform.training.tracking import RunInput, Tracker


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """`mlflow server` on the loopback device, its runs in sqlite."""
    folder = tmp_path_factory.mktemp("mlflow")
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", address.rpartition(":")[2]]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.3)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def delete_experiment(tracker):
    """As a person does it in MLflow's pages; no client then takes a run in it."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracker.uri)
    client.delete_experiment(client.get_experiment_by_name("echostill").experiment_id)
    with pytest.raises(MlflowException, match=r"active|ACTIVE"):
        tracker.metrics([{"step": 1, "loss": 0.0}])


@pytest.mark.slow  # MLflow makes its database
def test_two_runs_may_record_the_same_dataset_at_once(tmp_path, monkeypatch):
    """Another run inserts it between MLflow's look for it and its insertion."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    store = str(tmp_path)
    first, second = (
        Tracker.start(None, store, Storage(str(tmp_path / "runs" / name)), name, {})
        for name in ("student-0", "student-1")
    )
    coreset = RunInput(
        "coreset half", "c0" * 32, f"{store}/coresets/half", "training", {"rows": 12}
    )
    first.inputs([coreset])
    log_inputs, tries = MlflowClient.log_inputs, []

    def late(client, *arguments):
        tries.append(arguments)
        if len(tries) == 1:
            raise MlflowException("UNIQUE constraint failed: datasets.experiment_id")
        return log_inputs(client, *arguments)

    monkeypatch.setattr(MlflowClient, "log_inputs", late)
    second.inputs([coreset])
    for one in (first, second):
        (held,) = MlflowClient(one.uri).get_run(one.run_id).inputs.dataset_inputs
        assert held.dataset.name == "coreset half"


class StopHere(Exception):
    """Of a model that is not to be saved."""


def test_two_models_are_not_exported_at_once(monkeypatch):
    """torch.export keeps the model that it traces in a variable of its module."""
    import mlflow.pytorch

    inside, together = threading.Event(), []

    def save(*arguments, **options):
        together.append(inside.is_set())
        inside.set()
        time.sleep(0.1)  # for another to come in
        inside.clear()
        raise StopHere

    monkeypatch.setattr(mlflow.pytorch, "save_model", save)
    encoder = create_encoder("tinyusfm-micro")

    def record():
        with pytest.raises(StopHere):
            Tracker("sqlite://", "a run").model(encoder, "a model")

    threads = [threading.Thread(target=record) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [False] * 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_a_run_has_one_record_whatever_restarts(kind, request, tmp_path):
    uri = None if kind == "sqlite" else request.getfixturevalue("server")
    store, storage = str(tmp_path), Storage(str(tmp_path / "runs" / "student-0"))
    many = {"training": {f"key{number}": number for number in range(130)}}
    tracker = Tracker.start(uri, store, storage, "student-0", many)
    tracker.metrics([{"step": 1, "loss": 2.0, "weight_by_organ/liver & bile": 0.5}])
    tracker.finish("FAILED")
    delete_experiment(tracker)
    for step in (2, 3, 4):  # three restarts
        again = Tracker.start(uri, store, storage, "student-0", many)
        assert again == tracker
        again.metrics([{"step": step, "loss": 2.0 - step / 10}])
        again.inputs(
            [
                RunInput(
                    "coreset half",
                    "c0" * 32,
                    f"{store}/coresets/half",
                    "training",
                    {"rows": 12, "pool_rows": 40},
                )
            ]
        )
    kept = tmp_path / "metrics.jsonl"
    kept.write_text("{}")
    again.artifact(str(kept))
    encoder = create_encoder("tinyusfm-micro", image_size=32)
    again.model(encoder, "student-0")
    again.finish()

    import mlflow
    from mlflow.tracking import MlflowClient

    client = MlflowClient(again.uri)
    experiment = client.get_experiment_by_name("echostill")
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs] == [tracker.run_id]
    assert runs[0].info.status == "FINISHED"
    assert len(runs[0].data.params) == 130
    assert len(client.get_metric_history(tracker.run_id, "loss")) == 4
    assert runs[0].data.metrics["weight_by_organ/liver _ bile"] == 0.5
    names = {artifact.path for artifact in client.list_artifacts(tracker.run_id)}
    assert names == {"metrics.jsonl", "model"}
    (version,) = client.search_model_versions("name='echostill-student-0'")
    assert version.run_id == tracker.run_id
    (used,) = runs[0].inputs.dataset_inputs  # once, whatever restarts
    assert (used.dataset.name, used.dataset.digest) == ("coreset half", "c0" * 18)
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}
    assert json.loads(used.dataset.profile) == {"rows": 12, "pool_rows": 40, "sha256": "c0" * 32}
    assert mlflow.data.get_source(used).uri == f"{store}/coresets/half"
    named = client.get_model_version("echostill-student-0", version.version)
    assert named.tags == {"made from coreset half": "c0" * 18}
    path = mlflow.artifacts.download_artifacts(
        run_id=tracker.run_id, artifact_path="model", tracking_uri=again.uri
    )
    loaded = mlflow.pyfunc.load_model(path)
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 3, 32, 32)
    pixels = np.random.default_rng(0).random((3, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        expected = encoder(torch.from_numpy(pixels)).pooled.numpy()
    np.testing.assert_allclose(loaded.predict(pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_run_and_the_job_that_writes_it_name_each_other(tmp_path, monkeypatch, capsys):
    from mlflow.tracking import MlflowClient

    def start(job):
        metadata = {"job_submission_id": job, "dashboard": "http://head:8265"}
        monkeypatch.setenv(VARIABLE, json.dumps({"metadata": metadata}))
        folder = Storage(str(tmp_path / "store" / "runs" / "a"))
        return Tracker.start(None, str(tmp_path / "store"), folder, "a", {"seed": 1})

    for job in ("raysubmit_1", "raysubmit_2"):  # the second continues the first one's run
        tracker = start(job)
        tags = MlflowClient(tracker.uri).get_run(tracker.run_id).data.tags
        assert tags["ray.submission_id"] == job
        assert tags["ray.dashboard"] == f"http://head:8265/#/jobs/{job}"
        assert f"MLflow run of a: {tracker.run_id}" in capsys.readouterr().err
