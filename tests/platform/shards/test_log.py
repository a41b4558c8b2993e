"""What the log says of workers that wait for decoded images, and when it names the remedy."""

import pytest

from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.progress import Progress
from echostill.platform.shards.events import StageRun
from echostill.platform.shards.log import ShardLog
from echostill.platform.shards.watch import describe


class Events(StageRun):
    def __init__(self):
        super().__init__(None, "score")
        self.lines = []

    def add(self, event, **values):
        self.lines.append({"event": event, "stage": "score", "time": "2026-01-02", **values})


def log_of(waits, decoders):
    events = Events()
    plan = WorkerPlan(1, 1.0, 1, 1.0, decoders)
    log = ShardLog(events, Progress("score", len(waits), enabled=False), plan)
    records = {}
    for number, wait in enumerate(waits):
        records[number] = {"shard": number, "part": {"rows": 10}, "quarantine": None}
        seconds = {"wait for decoding": wait, "compute": 10 - wait, "work": 10.0}
        answer = {"record": records[number], "worker": "a", "seconds": seconds, "ended": 1.0}
        log.shard(answer, records)
    return events.lines


def test_a_starved_worker_is_said_once_and_the_first_shard_does_not_count(capsys):
    lines = log_of([9.0, 4.0, 2.0, 3.0], decoders=7)
    assert [line["wait_share"] for line in lines] == [0.9, 0.4, 0.3, 0.3]
    assert "waits for images 30% of the time" in describe(lines[-1])
    said = capsys.readouterr().err
    assert said.count("score: workers wait for decoded images 40% of their time") == 1
    assert "more than 7 CPU(s)" in said
    assert "score.decoders" in said


@pytest.mark.parametrize(("waits", "decoders"), [([9.0, 1.0, 9.0], 7), ([9.0, 9.0], 0)])
def test_a_fed_worker_is_left_alone_and_so_is_one_that_decodes_itself(waits, decoders, capsys):
    lines = log_of(waits, decoders)
    assert "workers wait" not in capsys.readouterr().err
    assert all(("wait_share" in line) == bool(decoders) for line in lines)
