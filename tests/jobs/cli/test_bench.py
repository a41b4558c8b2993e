"""The commands of benchmarks: the bars of the list, a card in words, a set from its download."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from echostill.jobs.benchmarks.preparation import prepare_bench
from echostill.jobs.cli.bench import bench
from echostill.jobs.cli.main import app, main


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)


@pytest.fixture
def download(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("fibroid", "non-fibroid"):
        folder = tmp_path / "download" / name
        folder.mkdir(parents=True)
        for number in range(6):
            sink = io.BytesIO()
            pixels = rng.integers(0, 256, (6, 6)).astype(np.uint8)
            Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(sink, "PNG")
            (folder / f"{number}.png").write_bytes(sink.getvalue())
    return str(tmp_path / "download")


def test_the_list_shows_sets_tasks_organs_licences_and_sources():
    lines = run("list").output.splitlines()
    assert len(lines) == 1 + 17 + 1
    assert lines[-1] == "17 sets; 8 classification and 10 segmentation tasks; 15 organs"
    assert all("http" in line for line in lines[1:-1])
    cards = json.loads(run("list", "--json").output)
    assert len(cards) == 17
    assert all(card["licence"]["name"] and card["licence"]["allows"] for card in cards)
    assert sum(card["published"] for card in cards) == 60_940  # as the published table adds up to


def test_a_card_says_what_is_inferred():
    shown = run("show", "tn3k").output
    assert "tenth segmentation task" in shown
    assert "[I]" in shown
    assert json.loads(run("show", "BUS-BRA", "--json").output)["name"] == "busbra"


def test_prepare_says_where_to_get_a_set_and_exits_with_2(capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(["bench", "prepare", "camus", "--to", str(tmp_path / "set")])
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "humanheart-project.creatis.insa-lyon.fr" in said
    assert "nothing is downloaded" in said


def test_an_unknown_set_is_an_error_with_the_nearest_name(capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "show", "bussi"])
    assert end.value.code == 2
    assert "Did you mean 'busi'?" in " ".join(capsys.readouterr().err.split())


def test_prepare_counts_and_verifies(download, tmp_path):
    folder = str(tmp_path / "set")
    options = ("uf1990", "--from", download, "--to", folder, "--accept-differences")
    assert "12 rows in = 12 out + 0 dropped + 0 quarantined" in run("prepare", *options).output
    counts = json.loads(run("prepare", *options, "--json").output)
    assert counts["groups"] == 12
    done = CliRunner().invoke(app, ["bench", "verify", folder])
    assert done.exit_code == 0, done.output
    (tmp_path / "set" / "images" / "fibroid_1.png").write_bytes(b"other")
    done = CliRunner().invoke(app, ["bench", "verify", folder])
    assert done.exit_code == 1
    assert "fibroid_1.png: the checksum" in done.output


def test_the_call_and_the_command_are_the_same(download, tmp_path):
    first = prepare_bench("uf1990", download, str(tmp_path / "a"), accept_differences=True)
    run(
        "prepare", "uf1990", "--from", download, "--to", str(tmp_path / "b"), "--accept-differences"
    )
    text = (tmp_path / "b" / "labels.csv").read_text()
    assert first.table.storage.read("labels.csv").decode() == text
    assert {command.name for command in bench.registered_commands} == {
        "list",
        "show",
        "prepare",
        "verify",
        "run",
        "report",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        ("run", "--prepared", "{}/none"): "holds no prepared set",
        ("run", "--seeds", "one"): "seeds",
        ("run", "protocl.shares=[1.0]"): "protocl",
        ("report", "--store", "{}/none"): "has no results: run `echostill bench run`",
        ("report", "--name", "a/b"): "cannot be a name",
    }.items(),
)
def test_wrong_input_is_one_line_and_exit_2(capsys, tmp_path, arguments, message):
    store = [] if arguments[0] == "report" else [f"store={tmp_path}/store"]
    with pytest.raises(SystemExit) as end:
        main(["bench", *(text.format(tmp_path) for text in arguments), *store])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
