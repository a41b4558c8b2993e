"""Exit codes and one-line errors of the command line."""

import json

import pytest

from echostill.platform.cli import main
from echostill.platform.config import STAGES

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
        (["ingest", "source=exampls"], ["no source", "Did you mean 'examples'"]),
        (["ingest"], ["source"]),
        (["score", "store=STORE"], ["does not exist", "echostill ingest"]),
        (["why", "abcd", "--store", "STORE"], ["does not exist", "echostill select"]),
        (["verify", "STORE"], ["no finished table"]),
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


def test_an_unknown_command_names_the_nearest(capsys):
    code, _, error = call(capsys, "selct")
    assert code == 2
    assert "select" in error


@pytest.mark.parametrize("name", [*STAGES, "run", "why", "models", "verify", "submit"])
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
