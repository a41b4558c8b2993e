"""The client and the commands, against a service and against a store: the same answers."""

import csv
import io
import json

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from echostill.curation import connect
from echostill.jobs.cli.main import app
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.store import Store

QUERY = "select organ, count(*) as images from pool group by organ order by organ"


@pytest.fixture(scope="module")
def service(live, make):
    with connect(live.url, make["token"]) as client:
        yield client


@pytest.fixture(scope="module")
def places(live, make, tmp_path_factory):
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


def test_samples_are_iterated_over_all_pages(service, live, monkeypatch):
    monkeypatch.setattr("echostill.curation.client.PAGE", 50)
    found = list(service.samples("default", selected="any"))
    assert len(found) == 236
    assert len(list(service.samples("default", selected="any", organ=["heart", "liver"]))) == 118
    table = Store(str(live.root)).open_coreset("default").read().sort_by("image_id")
    assert [item["reason"] for item in found] == table["reason"].to_pylist()


def test_a_table_is_the_coreset(service, live):
    table = service.table("spread")
    assert table.num_rows == 60
    assert table["selected"].to_pylist() == [True] * 60
    assert service.table("spread", selected="any").num_rows == 236


def test_queries_give_arrow_or_pandas(service):
    table = service.sql(QUERY)
    assert table.to_pydict() == {"organ": ["", "heart", "liver", "lung"], "images": [60] * 4}
    frame = service.sql("select * from pool where organ = ?", ["heart"], pandas=True)
    assert len(frame) == 60
    cut = service.sql("from pool", limit=5)
    assert (cut.num_rows, cut.schema.metadata[b"truncated"]) == (5, b"true")
    assert service.sql("from pool", limit=240).schema.metadata[b"truncated"] == b"false"


def test_everything_else_is_asked_too(service, make, tmp_path):
    image_id = make["identity"](12)
    assert service.pool()["images"] == 240
    assert service.coreset("default")["budget"] == 60
    assert service.stats("default")["selected"] == 60
    assert service.compare("default", "spread")["a"] == "default"
    assert service.why(image_id) == service.image(image_id)["why"]["text"]
    assert service.find("scan_0012")[0]["image_id"] == image_id
    assert service.thumbnail(image_id)[:2] == b"\xff\xd8"
    assert len(service.neighbours(image_id, 4, selected="true")) == 4
    assert service.clusters().num_rows == 8
    assert service.cluster(0)["cluster"] == 0
    assert service.map(sample=50).num_rows < 120
    pin = service.pin([image_id], author="a", reason="b")
    assert service.pins()[0]["id"] == pin["id"]
    service.unpin(pin["id"], author="a", reason="c")
    ban = service.ban([image_id], author="a", reason="b")
    service.unpin(ban["id"], author="a", reason="c")
    assert service.export("default", str(tmp_path / "c.parquet")) > 1000
    assert pq.read_table(tmp_path / "c.parquet").num_rows == 60
    assert [path.name for path in tmp_path.iterdir()] == ["c.parquet"]


def test_a_pick_is_waited_for(service):
    told = []
    job = service.pick("by-client", budget=12, clusters=4, progress=lambda *step: told.append(step))
    assert job["state"] == "done"
    assert told[-1] == ("done", 1.0)
    assert service.job(job["id"])["state"] == "done"
    assert job["id"] in [other["id"] for other in service.jobs()]
    with pytest.raises(EchostillError, match="picking 'impossible' failed: budget 200"):
        service.pick("impossible", budget=200, max_per_group=1)


def test_errors_are_the_services_words(service, live, make, tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'default'"):
        service.coreset("defalt")
    with pytest.raises(UsageError, match="there is no view 'pol'"):
        service.sql("from pol")
    with pytest.raises(EchostillError, match="timeout"):
        service.sql("select count(*) from range(1000000000000)", timeout=0.3)
    with pytest.raises(UsageError, match="no coreset"):
        service.export("none", str(tmp_path / "x.csv"))
    with pytest.raises(UsageError, match="no image file"):
        service.neighbours("none.png")
    with pytest.raises(UsageError, match="send the service's token"):
        connect(live.url, "wrong")
    with pytest.raises(EchostillError, match="no service answers at"):
        connect("http://127.0.0.1:9", "x")
    with pytest.raises(UsageError, match="is no address"):
        connect("127.0.0.1", "x")


def test_a_token_is_asked_for(live, monkeypatch):
    monkeypatch.delenv("ECHOSTILL_TOKEN", raising=False)
    with pytest.raises(UsageError, match="ECHOSTILL_TOKEN"):
        connect(live.url)
    with pytest.raises(UsageError, match="no token file"):
        connect(live.url, token_file="none")


def test_commands_answer_alike_from_service_and_store(places, make):
    commands = [
        ["query", QUERY],
        ["query", QUERY, "--json"],
        ["query", "from coreset order by image_id", "--csv", "--coreset", "spread"],
        ["neighbours", make["identity"](3), "-k", "5", "--coreset", "default"],
        ["neighbours", make["identity"](3), "--json", "--other-groups", "--coreset", "default"],
        ["compare", "default", "spread"],
        ["compare", "default", "spread", "--json"],
    ]
    for command in commands:
        served, local = (run(*command, *place) for place in places)
        assert served == local
    assert json.loads(run(*commands[1], *places[1]))[1] == {"organ": "heart", "images": 60}
    rows = list(csv.reader(io.StringIO(run(*commands[2], *places[1]))))
    assert len(rows) == 237
    assert "are in both" in run(*commands[5], *places[1])


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_exports_are_alike_from_service_and_store(places, tmp_path, kind):
    for number, place in enumerate(places):
        run("export-coreset", "default", tmp_path / f"{number}.{kind}", *place)
    first, second = ((tmp_path / f"{number}.{kind}").read_bytes() for number in (0, 1))
    assert first == second


def test_wrong_commands_are_told_in_words(places, tmp_path):
    _, store = places
    assert "not both" in run("query", "x", *places[0], *places[1], code=2)
    assert "there is no view 'pol'" in run("query", "from pol", *store, code=2)
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
