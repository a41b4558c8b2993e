import json
import threading
import time

import pytest

from echostill.platform.errors import UsageError
from echostill.platform.shards import watch as module
from echostill.platform.shards.events import EventLog
from echostill.platform.shards.watch import watch
from echostill.platform.tables.store import Store

SHARD = {
    "shard": 3,
    "done": 4,
    "shards": 8,
    "rows_out_so_far": 40,
    "quarantined_so_far": 2,
    "rows_per_second": 12.5,
    "seconds_left": 40.0,
}


def log(tmp_path, stage="score"):
    return EventLog(Store(str(tmp_path)).events(), stage)


def test_a_finished_run_is_told_in_words(tmp_path, capsys):
    events = log(tmp_path)
    events.add("started", mode="run", shards=8, plan="2 worker(s)")
    events.add("resumed", shards=3, rows_out=30, quarantined=1, repeated=[3])
    events.add("shard", **SHARD)
    events.add("failed", error="EchostillError", message="no more disk")
    events.add("started", mode="retry", shards=1, plan="1 worker(s)")
    events.add("finished", rows_in=82, rows_out=80, quarantined=2, seconds=12.0)
    watch(str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    for line, words in zip(
        lines,
        [
            "score: starts: 8 shard(s), 2 worker(s)",
            "3 shard(s) finished earlier with 30 rows and 1 quarantined; 1 cut short, run again",
            "4/8 shards, 40 rows at 12.5/s, 2 quarantined, about 40 s left (ends ",
            "failed: no more disk",
            "tries the quarantine again: 1 shard(s)",
            "finished: 82 rows in = 80 rows out + 2 quarantined (12.0 s)",
        ],
        strict=True,
    ):
        assert words in line
    watch(str(tmp_path), as_json=True)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in told][-1] == "finished"


def test_a_run_is_followed_until_it_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    events = log(tmp_path)
    events.add("started", mode="run", shards=8, plan="")
    log(tmp_path, "ingest").add("finished", rows_in=1, rows_out=1, quarantined=0, seconds=1.0)
    watching = threading.Thread(target=watch, args=(str(tmp_path),))
    watching.start()
    time.sleep(0.1)
    assert watching.is_alive()
    events.add("shard", **SHARD)
    events.add("interrupted")
    watching.join(20)
    assert not watching.is_alive()
    out = capsys.readouterr().out
    assert out.count("\n") == 4
    assert out.rstrip().endswith("score: interrupted")
    events.add("started", mode="run", shards=8, plan="")
    watch(str(tmp_path), follow=False)  # a killed run never ends: one look is enough
    assert capsys.readouterr().out.count("\n") == 5


def test_nothing_to_watch(tmp_path, capsys):
    with pytest.raises(UsageError, match="no store"):
        watch(str(tmp_path / "no"))
    watch(str(tmp_path))
    assert "has logged anything yet" in capsys.readouterr().out
