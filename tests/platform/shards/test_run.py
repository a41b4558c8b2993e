"""An actor that overlaps shards: one is computed while one is begun and another written."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from echostill.platform.shards import run as module
from echostill.platform.shards.files import ShardFiles
from echostill.platform.shards.outcome import Outcome
from echostill.platform.shards.run import ShardActor
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage

SCHEMA = pa.schema([("value", pa.int64())])
SECONDS = 30  # after which a meeting has failed


class Meetings:
    """Events by name; waiting for one that never comes fails."""

    def __init__(self):
        self.events = {}
        self.computing = 0

    def __getitem__(self, name):
        return self.events.setdefault(name, threading.Event())

    def wait(self, name):
        assert self[name].wait(SECONDS), f"{name} never came"


class Worker:
    """Computes shard 0 once shard 1 was begun, and shard 1 once shard 0 is being written."""

    def __init__(self, meetings):
        self.meetings = meetings

    def process(self, payload):
        self.meetings.computing += 1
        assert self.meetings.computing == 1, "two shards are computed at the same time"
        assert payload["begun"]
        number = payload["number"]
        if number == 0:
            self.meetings.wait("begun 1")
        if number == 1:
            self.meetings.wait("writing 0")
        self.meetings[f"computed {number}"].set()
        self.meetings.computing -= 1
        rows = pa.table({"value": [number]})
        return Outcome(rows, QUARANTINE_SCHEMA.empty_table(), [(1, 0)], {"compute": 0.5})


class Files(ShardFiles):
    """Writes shard 0 once shard 1 is computed; a full disk where it is told so."""

    def write(self, index, outcome):
        MEETINGS[0][f"writing {index}"].set()
        if index == 0:
            MEETINGS[0].wait("computed 1")
        if index == FULL[0]:
            raise OSError("no space left")
        return super().write(index, outcome)


MEETINGS, FULL = [None], [None]


@pytest.fixture
def actor(tmp_path, monkeypatch):
    """An actor as Ray Data has it, with nobody to count for."""

    class Silent:
        def __init__(self, *_, **__):
            self.added = []

        def add(self, metric, value, **labels):
            self.added.append((labels.get("phase"), value))

        def set(self, metric, value):
            pass

    monkeypatch.setattr(module.metrics, "MetricPublisher", Silent)
    meetings = MEETINGS[0] = Meetings()
    FULL[0] = None

    def begin(payload):
        meetings[f"begun {payload['number']}"].set()
        return {**payload, "begun": True}

    folders = Storage(str(tmp_path / "toy")), Storage(str(tmp_path / "quarantine"))
    files = Files("toy", *folders, SCHEMA, Fingerprint({}, "1", {}, {}))
    return ShardActor(files, lambda: Worker(meetings), 1, False, "cpu", begin)


def call(actor, number):
    (text,) = actor({"shard": [number], "payload": [json.dumps({"number": number})]})["finished"]
    return json.loads(text)


def test_a_shard_is_begun_and_another_written_while_one_is_computed(actor):
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, actor, 0)
        MEETINGS[0].wait("begun 0")
        second = pool.submit(call, actor, 1)
        said = [first.result(SECONDS), second.result(SECONDS)]
    assert [answer["record"]["shard"] for answer in said] == [0, 1]
    stage = actor._stage
    for number in (0, 1):
        assert stage.read(stage.record(number)).rows.to_pydict() == {"value": [number]}
    assert stage.table.list("running") == []
    assert all({"compute", "work", "write"} <= answer["seconds"].keys() for answer in said)
    assert all(answer["seconds"]["processor"] >= 0 for answer in said)


def test_what_fails_while_writing_is_told_and_leaves_its_mark(actor):
    """The other shard is finished all the same; the failed one counts as begun."""
    FULL[0] = 0
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(call, actor, 0)
        MEETINGS[0].wait("begun 0")
        second = pool.submit(call, actor, 1)
        with pytest.raises(OSError, match="no space left"):
            first.result(SECONDS)
        assert second.result(SECONDS)["record"]["shard"] == 1
    assert actor._stage.record(0) is None
    (mark,) = actor._stage.table.list("running")
    assert mark.startswith("running/00000-")
