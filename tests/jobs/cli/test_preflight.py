"""Every command, with what it depends on dead: one line within seconds, before any work."""

import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

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


TASK = "evaluate.tasks=[{name: toy, kind: classification, manifest: FOLDER/toy.csv}]"
BY_PATIENT = TASK.replace("}", ", group_column: patient}")


@pytest.fixture
def evaluated(configured, tmp_path):
    """A whole run that can be made, with a labelled set of its own."""
    rows = ["file,label,group"]
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'ab'[number % 2]},g{number}")
    (tmp_path / "toy.csv").write_text("\n".join(rows))
    weights = SAMPLE / "teacher" / "usfm-micro.safetensors"

    def arguments(*more):
        given = [f"teacher.weights={weights}", TASK, *more]
        return configured("run", *(words.replace("FOLDER", str(tmp_path)) for words in given))

    return arguments


@pytest.mark.parametrize(
    ("given", "lines", "said"),
    [
        ("evaluate.teacher.weights=gone.pth", "", "'gone.pth'"),
        ("evaluate.student=tinyusfm-mikro", "", "Did you mean 'tinyusfm-micro'"),
        ("evaluate.candidates=[{label: a, runs: [distiled-0]}]", "", "Did you mean 'distilled-0'"),
        ("evaluate.comparisons=[{first: distiled, second: teacher}]", "", "'distilled'"),
        ("evaluate.folds=2", "gone.png,a,g9", "'gone.png' of"),
        ("evaluate.folds=2", "0.png,b,g9", "row 10 names '0.png' again"),
        ("evaluate.folds=2", "again.png,A,g9", "the labels 'A' and 'a' differ only"),
        ("evaluate.folds=2", "broken.png,a,g9", "'broken.png' is not a readable image"),
        (BY_PATIENT, "", "has no column 'patient'"),
    ],
)
def test_a_run_refuses_what_its_evaluation_would_refuse(
    capsys, evaluated, tmp_path, given, lines, said
):
    """Hours before the evaluation's turn: its students are not there yet."""
    (tmp_path / "again.png").write_bytes((tmp_path / "0.png").read_bytes())
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    with (tmp_path / "toy.csv").open("a") as file:
        file.write(f"\n{lines}")
    assert said in refused(capsys, *evaluated(given))


def test_students_and_a_teacher_that_are_still_to_come_are_no_reason_to_refuse(capsys, evaluated):
    students = [
        "distill.students=[{name: ours}, {name: other, model: tinyusfm, image_size: 64, "
        "objective: {preset: mim-only}}]",
        "distill.seeds=[0, 1]",
        "evaluate.candidates=[{label: a, runs: [ours-0, ours-1]}, {label: b, runs: [other-1]}, "
        "{label: t, kind: teacher}]",
        "evaluate.comparisons=[{first: distilled, second: MIM-only}, {first: a, second: teacher}]",
    ]
    for scratch in ([], ["--from-scratch", "pretrain.model=usfm-micro"]):
        for chosen in ([], students):
            with pytest.raises(SystemExit) as ended:
                main(evaluated(*chosen, *scratch, "--dry-run"))
            assert ended.value.code == 0
            assert "waits for an earlier stage" in capsys.readouterr().out


def test_a_dead_dashboard_and_a_dead_cluster_of_a_service(capsys, tmp_path, closed_port):
    address = f"127.0.0.1:{closed_port}"
    for given in (address, f"http://{address}"):
        line = refused(capsys, "submit", "select", "--address", given)
        assert f"no Ray dashboard answers at {given}: nothing listens there" in line
    line = refused(capsys, "serve", str(tmp_path), "--address", address)
    assert f"cannot reach Ray at '{address}' (address)" in line
