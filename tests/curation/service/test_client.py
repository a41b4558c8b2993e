"""The client's connection and picks; the commands, which answer alike from service and store."""

import csv
import io
import json

import pytest
from typer.testing import CliRunner

from echostill.curation import connect
from echostill.jobs.cli.main import app
from echostill.platform.errors import EchostillError, UsageError

pytestmark = pytest.mark.slow

QUERY = "select organ, count(*) as images from pool group by organ order by organ"


@pytest.fixture(scope="module")
def service(live, make):
    with connect(live.url, make["token"]) as client:
        yield client


@pytest.fixture(scope="module")
def sources(live, make, tmp_path_factory):
    """Options that name the service and its store."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(make["token"])
    return [["--url", live.url, "--token-file", str(token)], ["--store", str(live.root)]]


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if code == 0:
        assert done.exit_code == 0, done.output + str(done.exception)
        return done.output
    assert done.exception is not None
    return str(done.exception)


def test_a_pick_is_waited_for(service):
    steps = []
    job = service.pick(
        "by-client", budget=12, clusters=4, progress=lambda *step: steps.append(step)
    )
    assert job["state"] == "done"
    assert steps[-1] == ("done", 1.0)
    assert service.job(job["id"])["state"] == "done"
    assert job["id"] in [other["id"] for other in service.jobs()]
    with pytest.raises(EchostillError, match="picking 'impossible' failed: budget 200"):
        service.pick("impossible", budget=200, max_per_group=1)


def test_a_service_that_cannot_be_reached_is_named(live):
    with pytest.raises(UsageError, match="send the service's token"):
        connect(live.url, "wrong")
    with pytest.raises(EchostillError, match="no service answers at"):
        connect("http://127.0.0.1:9", "x")
    with pytest.raises(UsageError, match="is not a valid URL"):
        connect("127.0.0.1", "x")


def test_a_token_is_asked_for(live, monkeypatch):
    monkeypatch.delenv("ECHOSTILL_TOKEN", raising=False)
    with pytest.raises(UsageError, match="ECHOSTILL_TOKEN"):
        connect(live.url)
    with pytest.raises(UsageError, match="no token file"):
        connect(live.url, token_file="none")


def test_commands_answer_alike_from_service_and_store(sources, make):
    commands = [
        ["query", QUERY],
        ["query", QUERY, "--json"],
        ["query", "from coreset order by image_id", "--csv", "--coreset", "spread"],
        ["neighbours", make["identity"](3), "-k", "5", "--coreset", "default"],
        ["neighbours", make["identity"](3), "--json", "--other-groups", "--coreset", "default"],
        ["neighbours", make["identity"](3)[:7], "-k", "3", "--coreset", "default"],
        ["neighbours", "scan_0003.png", "-k", "3", "--coreset", "default"],
        ["compare", "default", "spread"],
        ["compare", "default", "spread", "--json"],
    ]
    for command in commands:
        served, local = (run(*command, *place) for place in sources)
        assert served == local
    assert json.loads(run(*commands[1], *sources[1]))[1] == {"organ": "heart", "images": 60}
    rows = list(csv.reader(io.StringIO(run(*commands[2], *sources[1]))))
    assert len(rows) == 237
    assert "are in both" in run(*commands[7], *sources[1])


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_exports_are_alike_from_service_and_store(sources, tmp_path, kind):
    for number, place in enumerate(sources):
        run("export-coreset", "default", tmp_path / f"{number}.{kind}", *place)
    first, second = ((tmp_path / f"{number}.{kind}").read_bytes() for number in (0, 1))
    assert first == second


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrow"])
def test_answers_as_files_are_alike_from_service_and_store(sources, tmp_path, kind):
    for number, place in enumerate(sources):
        told = run(
            "query", "from pool order by image_id", "--to", tmp_path / f"{number}.{kind}", *place
        )
        assert told.endswith(": 240 rows\n")
    first, second = ((tmp_path / f"{number}.{kind}").read_bytes() for number in (0, 1))
    assert first == second


def test_wrong_commands_have_clear_errors(sources, tmp_path):
    _, store = sources
    assert "not both" in run("query", "x", *sources[0], *sources[1], code=2)
    assert "there is no view 'pol'" in run("query", "from pol", *store, code=2)
    assert "give one of them" in run("query", "x", "--to", "x.csv", "--json", *store, code=2)
    assert "goes with --to" in run("query", "x", "--overwrite", *store, code=2)
    taken = tmp_path / "taken.csv"
    taken.touch()
    assert "exists: give another name, or --overwrite" in run(
        "query", "x", "--to", taken, *store, code=2
    )
    assert "Did you mean 'default'" in run("compare", "defalt", "spread", *store, code=2)
    assert "no image" in run("neighbours", "nothing-like-it", *store, code=2)
    assert "end in .parquet" in run("export-coreset", "default", "x.txt", *store, code=2)
    assert "true, false or any" in run("neighbours", "x", "--selected", "x", *store, code=2)


def test_a_pin_from_the_command_line(own_store, make):
    text = run("pin", make["identity"](2), "--reason", "typical", "--store", own_store)
    assert "pinned by" in text
    text = run("pin", "scan_0003.png", "--reason", "x", "--ban", "--author", "me", "-s", own_store)
    assert text.strip() == f"p-000002: {make['identity'](3)} banned by me"
    shown = run("query", "select action, author from pins order by pin_id", "-s", own_store)
    assert shown.splitlines()[-1].split() == ["ban", "me"]


def test_columns_of_one_name_are_all_there(service, live):
    """A join repeats names; nothing may shift under another heading."""
    text = (
        "select a.organ, b.organ, a.width as organ_1, b.image_id from pool a "
        "join pool b using (image_id) order by b.image_id limit 3"
    )
    table = service.sql(text)
    assert table.column_names == ["organ", "organ_2", "organ_1", "image_id"]
    assert table["organ"].to_pylist() == table["organ_2"].to_pylist()
    assert all(isinstance(value, int) for value in table["organ_1"].to_pylist())
    printed = run("query", text, "--store", live.root, "--csv").splitlines()
    assert printed[0] == "organ,organ_2,organ_1,image_id"
    listed = json.loads(run("query", text, "--store", live.root, "--json"))
    assert [list(row) for row in listed] == [table.column_names] * 3
