"""Every command, with what it depends on dead: one line within seconds, before any work."""

import time
from pathlib import Path

import pytest
import yaml

from echostill.jobs.cli.main import main
from echostill.jobs.stages import find_stage
from echostill.platform.preflight.answers import SILENT
from echostill.platform.stages import BESIDE, STAGES

SAMPLE = Path(__file__).resolve().parents[3] / "examples" / "quickstart"
BAR = 10.0  # seconds, of the promise that a dead thing is said
EVERY = {**STAGES, **BESIDE}
ON_RAY = [name for name, info in EVERY.items() if info.on_ray] + ["run"]
TRACKED = [name for name, info in EVERY.items() if info.tracked] + ["run"]


def refused(capsys, *arguments):
    """Run a command that must refuse; return its line."""
    for name in EVERY:  # what a machine needs to import torch is not the checks' own
        find_stage(name)
    started = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert time.monotonic() - started < BAR
    captured = capsys.readouterr()
    assert ended.value.code == 2, captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err.strip().splitlines()) == 1
    return captured.err


@pytest.fixture
def configured(tmp_path):
    """What is asked of a command, and its store, which is not there yet."""
    store = str(tmp_path / "store")
    shared = {"store": store, "progress": False, "student": "tinyusfm-micro"}
    task = {"name": "liver", "kind": "classification"}
    content = {
        **shared,
        "teacher": {"model": "usfm-micro"},
        "ingest": {"source": str(SAMPLE / "pool" / "dicom")},
        "evaluate": {"tasks": [{**task, "manifest": str(SAMPLE / "benchmark" / "liver.csv")}]},
    }
    files = {"stages": content, "sweep": {"store": store, "base": {}, "grid": {"seeds": [[0]]}}}
    for name, values in files.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))

    def arguments(command, *more):
        file = tmp_path / ("sweep.yaml" if command == "sweep" else "stages.yaml")
        return [command, "--config", str(file), *more]

    yield arguments
    assert not Path(store).exists()


@pytest.mark.parametrize("mode", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_a_dead_cluster(capsys, monkeypatch, configured, closed_port, mode):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    lines = {refused(capsys, *configured(name, *mode)) for name in ON_RAY}
    assert len(lines) == 1
    assert f"cannot reach Ray at '127.0.0.1:{closed_port}' (RAY_ADDRESS)" in lines.pop()


@pytest.mark.parametrize("mode", [[], ["--dry-run"]], ids=["run", "dry-run"])
def test_a_dead_mlflow_server(capsys, configured, closed_port, mode):
    given = f"tracking=http://127.0.0.1:{closed_port}"
    lines = {refused(capsys, *configured(name, given, *mode)) for name in TRACKED}
    assert len(lines) == 1
    assert f"cannot record runs in MLflow at 'http://127.0.0.1:{closed_port}'" in lines.pop()


@pytest.mark.slow  # waits for an answer that never comes
def test_a_cluster_that_never_answers(capsys, configured, silent_port):
    assert SILENT in refused(capsys, *configured("ingest", f"address=127.0.0.1:{silent_port}"))


def test_a_dead_bucket(capsys, configured, tmp_path, closed_port):
    bucket = f"s3://cli{closed_port}/s?endpoint_override=127.0.0.1:{closed_port}&scheme=http"
    asked = [configured(name, f"store={bucket}") for name in (*EVERY, "run", "retry-failed")]
    asked[-1].insert(1, "ingest")
    asked += [configured(name, f"store={bucket}", "--dry-run") for name in ("ingest", "run")]
    asked += [[name, bucket] for name in ("verify", "watch", "review", "serve")]
    asked += [["leakcheck", bucket, str(SAMPLE / "benchmark" / "liver.csv")]]
    asked += [["export", "--store", bucket, "--run", "r", "--to", str(tmp_path / "to")]]
    for words in (
        ["query", "select 1"],
        ["neighbours", "abcd"],
        ["compare", "a", "b"],
        ["export-coreset", "default", str(tmp_path / "chosen.csv")],
        ["atlas", str(tmp_path / "atlas.parquet")],
        ["pin", "abcd", "--reason", "why"],
        ["why", "abcd"],
    ):
        asked.append([*words, "--store", bucket])
    for arguments in asked:
        assert "cannot reach the object store" in refused(capsys, *arguments), arguments


def test_a_store_that_cannot_be_written(capsys, configured, tmp_path):
    (tmp_path / "file").touch()
    store = str(tmp_path / "file" / "store")
    for name in (*EVERY, "run"):
        line = refused(capsys, *configured(name, f"store={store}"))
        assert (
            f"the store '{store}' cannot be written: '{tmp_path / 'file'}' is not a folder" in line
        )


def test_a_dead_dashboard_and_a_dead_cluster_of_a_service(capsys, tmp_path, closed_port):
    address = f"127.0.0.1:{closed_port}"
    for given in (address, f"http://{address}"):
        line = refused(capsys, "submit", "select", "--address", given)
        assert f"no Ray dashboard answers at {given}: nothing listens there" in line
    line = refused(capsys, "serve", str(tmp_path), "--address", address)
    assert f"cannot reach Ray at '{address}' (address)" in line
