"""Exit codes and one-line errors of the command line."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pytest
import torch
import yaml

from echostill.jobs.cli.main import main
from echostill.platform.models import create_encoder, save_weights
from echostill.platform.stages import STAGES
from echostill.platform.tables.schemas import CORESET_SCHEMA, POOL_SCHEMA, scores_schema
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table

SAMPLE = "examples/quickstart/config.yaml"


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["select", "budgett=3"], ["budgett", "Did you mean 'budget'"]),
        (["select", "--config", "no/such.yaml"], ["no configuration file", "no/such.yaml"]),
        (["ingest", "source=exampls"], ["'exampls' does not exist", "Did you mean 'examples'"]),
        (["ingest"], ["source"]),
        (["score", "store=STORE"], ["does not exist", "echostill ingest"]),
        (["why", "abcd", "--store", "STORE"], ["does not exist", "echostill select"]),
        (["verify", "STORE"], ["no finished table"]),
        (["verify", "tets"], ["no finished table", "Did you mean 'tests'"]),
        (["distill", "store=STORE"], ["echostill select"]),
        (["pretrain", "store=STORE"], ["does not exist", "echostill ingest"]),
        (["select", "store=STORE"], ["does not exist", "echostill score"]),
        (["select", "budget=many", "store=STORE"], ["budget"]),
        (["select", "budget"], ["'budget' is not of the form key=value"]),
        (["select", "store=ftp://there/store"], ["ftp://there/store", "s3://"]),
        (["ingest", "source=examples", "workers=0"], ["workers", "greater than or equal to 1"]),
        (["retry-failed", "scoer", "store=STORE"], ["no stage 'scoer'", "Did you mean 'score'"]),
        (["retry-failed", "select", "store=STORE"], ["keeps no quarantine: ingest and score do"]),
        (["retry-failed", "score", "store=STORE"], ["does not exist", "echostill ingest"]),
        (["watch", "STORE"], ["no store", "to watch"]),
        (["export", "--store", "STORE", "--to", "STORE"], ["--run NAME"]),
        (["export", "--store", "STORE", "--run", "a", "--to", "STORE"], ["no run 'a'"]),
        (["export", "--run", "a", "--to", "b", "--form", "onxx"], ["Did you mean 'onnx'"]),
        (["embed", "examples", "--model", "usfm"], ["--weights"]),
        (["embed", "exampls", "--model", "a", "--store", "STORE"], ["no model 'a'"]),
        (["cache", "store=STORE"], ["echostill select"]),
        (["cache", "cache_precision=int9"], ["cache_precision", "Did you mean 'int8'"]),
        (["sweep"], ["'base' is required", "'grid' is required"]),
        (["sweep", "--config", "examples/sweep.yaml", "grid={trainin.steps: [1]}"], ["trainin"]),
        (["submit", "selct"], ["no stage 'selct'", "Did you mean 'select'"]),
        (["submit", "select", "--working-dir", "no/such"], ["no folder 'no/such'"]),
        (
            ["run", "--config", SAMPLE, "teacher.weights=examples/quickstart/teacher/usfm.safe"],
            ["usfm.safe"],
        ),
        (["run", "--config", SAMPLE, "student=tinyusfm-mikro"], ["Did you mean 'tinyusfm-micro'"]),
        (["run", "--config", SAMPLE, "selct.budget=3"], ["selct", "Did you mean 'select'"]),
        (["run", "--config", SAMPLE, "distill.training.step=3"], ["Did you mean 'steps'"]),
    ],
)
def test_wrong_usage_is_one_line_and_exits_with_2(
    capsys, monkeypatch, tmp_path, request, arguments, words
):
    monkeypatch.chdir(request.config.rootpath)
    arguments = [text.replace("STORE", str(tmp_path / "store")) for text in arguments]
    code, _, error = call(capsys, *arguments)
    assert code == 2, error
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
    for word in words:
        assert word in error


def test_an_unknown_command_or_option_names_the_nearest(capsys):
    for arguments, nearest in ((["selct"], "select"), (["select", "--confg", "x"], "--config")):
        code, _, error = call(capsys, *arguments)
        assert code == 2
        assert nearest in error
        assert "Traceback" not in error


@pytest.fixture
def finished(tmp_path):
    """A store with tables of two images, a teacher, and a configuration for all stages."""
    store = Store(str(tmp_path / "store"))
    ids = [{"image_id": f"{row:032x}", "source": f"{row}.png"} for row in range(2)]
    pool = pa.Table.from_pylist(ids, schema=POOL_SCHEMA)
    scores = [{**row, "feature": [0.6, 0.8], "gradient": [1.0] * 3} for row in ids]
    scores = pa.Table.from_pylist(scores, schema=scores_schema(2, 3))
    numbers = [field.name for field in CORESET_SCHEMA if not pa.types.is_string(field.type)]
    said = {**dict.fromkeys(numbers, 1), "selected": True, "reason": "selected"}
    chosen = [{**row, **said} for row in ids]
    chosen = pa.Table.from_pylist(chosen, schema=CORESET_SCHEMA)
    counts = {"rows_in": 2, "quarantined": 0}
    for storage, table, stage in (
        (store.pool(), pool, "ingest"),
        (store.scores(), scores, "score"),
        (store.coreset("default"), chosen, "select"),
    ):
        write_table(storage, table, stage=stage, fingerprint={"digest": ""}, extra=counts)
    teacher = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    save_weights(create_encoder("usfm-micro"), str(teacher), {})
    task = {"name": "liver", "kind": "classification"}
    content = {
        "store": store.root,
        "teacher": {"model": "usfm-micro", "weights": str(teacher)},
        "student": "tinyusfm-micro",
        "ingest": {"source": "examples/quickstart/pool/dicom"},
        "pretrain": {"model": "usfm-micro"},
        "score": {"proxy": {"training": {"steps": 7}}},
        "select": {"budget": 1},
        "distill": {"training": {"steps": 7}},
        "evaluate": {"tasks": [{**task, "manifest": "examples/quickstart/benchmark/liver.csv"}]},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path), store


PLANNED = {
    "ingest": ["2 files", "already done"],
    "pretrain": ["usfm-micro", "2 in", "already done"],
    "score": ["2 images in 1 shards", "7 x 256 images", "proxy done", "scores"],
    "duplicates": ["2 images in", "24 of 256 bits", "already done  no"],
    "select": ["2 rows of 2", "1 images", "already done  yes"],
    "distill": ["2 images of 2", "distilled-0", "to do"],
    "evaluate": ["teacher", "untrained student", "liver (classification)", "0 of"],
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_of_each_stage_plans_and_touches_nothing(
    capsys, finished, request, monkeypatch, stage
):
    monkeypatch.chdir(request.config.rootpath)
    path, store = finished
    before = store.storage.list(recursive=True)
    code, out, error = call(capsys, stage, "--config", path, "--dry-run")
    if stage == "report":
        assert code == 2
        assert "echostill evaluate" in error
    else:
        assert code == 0, error
        for word in PLANNED[stage]:
            assert word in out
    assert store.storage.list(recursive=True) == before


def test_a_missing_or_foreign_checkpoint_is_refused_by_each_stage_that_needs_it(
    capsys, finished, request, monkeypatch
):
    monkeypatch.chdir(request.config.rootpath)
    path, store = finished
    for stage in ("score", "distill", "evaluate"):
        for setting, words in (
            (f"teacher.weights={path[:-11]}teecher.safetensors", "mean 'teacher.safetensors'"),
            ("teacher.model=tinyusfm-micro", "does not fit"),
        ):
            code, _, error = call(capsys, stage, "--config", path, setting)
            assert code == 2, error
            assert len(error.strip().splitlines()) == 1
            assert words in error
    code, _, error = call(capsys, "distill", "--config", path, "coreset=defualt")
    assert code == 2
    assert "Did you mean 'default'" in error
    assert not store.storage.exists("runs")


def test_an_image_that_is_not_there(capsys, finished):
    _, store = finished
    code, _, error = call(capsys, "why", "abcd", "--store", store.root)
    assert code == 2
    assert "abcd" in error
    assert len(error.strip().splitlines()) == 1


def test_verify_says_what_is_wrong_as_json_too(capsys, finished):
    _, store = finished
    part = store.pool().read("part-00000.parquet")
    store.pool().write("part-00000.parquet", bytes([part[0] ^ 1]) + part[1:])
    code, out, _ = call(capsys, "verify", store.root, "--json")
    assert code == 1
    said = json.loads(out)
    assert not said["sound"]
    assert any("pool/part-00000.parquet" in problem for problem in said["problems"])


@pytest.mark.parametrize(
    "name",
    [*STAGES, *("run", "why", "models", "verify", "export", "embed", "cache", "sweep", "submit")],
)
def test_every_command_shows_an_example(capsys, name):
    code, out, _ = call(capsys, name, "--help")
    assert code == 0
    assert "Example:" in out
    assert f"echostill {name}" in out


def test_models_are_the_published_sizes(capsys):
    code, out, _ = call(capsys, "models", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["tinyusfm"]["parameters"] == 5_524_416
    assert rows["tinyusfm"]["gflops_paper"] == pytest.approx(2.15, abs=0.02)
    assert rows["usfm"]["parameters"] + 768 * 1000 + 1000 == 86_530_984
    assert rows["usfm"]["gflops_paper"] == pytest.approx(33.7, abs=0.2)


HEAVY = {
    *("faiss", "fastapi", "matplotlib", "mlflow", "onnx", "pandas", "pydicom", "ray"),
    *("scipy", "sklearn", "timm", "torch", "torchvision", "uvicorn"),
}
MOMENTARY = """
import sys
from echostill.jobs.cli.main import main
for arguments in {}:
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
"""


@pytest.mark.slow
def test_what_answers_in_a_moment_loads_nothing_heavy(finished):
    """One process, and the one that it starts for SQL, list all that they import."""
    _, store = finished
    store.coreset("default").write("configuration.json", b"{}")
    commands = [
        *(["--help"], ["--version"], ["query", "--help"], ["distill", "--help"], ["models"]),
        ["query", "select p.*, c.selected from pool p join coreset c using (image_id)"],
        ["query", "select 1 as one", "--json"],
        *(["why", f"{0:032x}"], ["pin", f"{1:032x}", "--reason", "seen", "--author", "a"]),
    ]
    commands = [
        [*words, "--store", store.root] if len(words) > 1 and "--help" not in words else words
        for words in commands
    ]
    commands += [[name, store.root] for name in ("coresets", "runs", "reports", "verify")]
    done = subprocess.run(
        [sys.executable, "-c", MOMENTARY.format(commands)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"},
    )
    lines = done.stderr.splitlines()
    imported = {
        line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")
    }
    assert done.returncode == 0, [line for line in lines if not line.startswith("import time:")]
    assert {"pyarrow", "duckdb"} <= imported  # of this process, and of the other
    # A package that was found brings modules of its own; a look for one that is hidden does not.
    found = {name.partition(".")[0] for name in imported if "." in name}
    assert found & HEAVY == set()


def test_a_dry_run_does_nothing(capsys, tmp_path, request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    store = tmp_path / "store"
    code, out, _ = call(capsys, "run", "--config", SAMPLE, f"store={store}", "--dry-run")
    assert code == 0
    for stage in ("ingest", "score", "select", "distill", "evaluate", "report"):
        assert stage in out
    assert "1004 files" in out
    assert not store.exists()


def test_a_relative_store_is_refused_inside_a_job(capsys, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    code, _, error = call(capsys, "select", "store=runs/mine")
    assert code == 2
    assert "absolute" in error
