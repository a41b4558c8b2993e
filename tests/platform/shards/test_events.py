import json

from echostill.platform.shards.events import EventLog, logged_stages, read_events
from echostill.platform.tables.storage import Storage


def test_a_log_grows_by_whole_lines_over_several_runs(tmp_path):
    events = Storage(str(tmp_path / "events"))
    assert logged_stages(events) == []
    assert read_events(events, "score") == []
    for run in range(2):
        log = EventLog(events, "score")
        log.add("started", shards=run)
        log.add("finished")
    EventLog(events, "ingest").add("started")
    found = read_events(events, "score")
    assert [event["event"] for event in found] == ["started", "finished"] * 2
    assert len({event["run"] for event in found}) == 2
    assert {event["stage"] for event in found} == {"score"}
    assert [event["time"] for event in found] == sorted(event["time"] for event in found)
    assert read_events(events, "score", after=3) == found[3:]
    assert logged_stages(events) == ["ingest", "score"]
    for line in (tmp_path / "events" / "score.jsonl").read_text().splitlines():
        json.loads(line)


def test_half_a_line_is_not_an_event(tmp_path):
    events = Storage(str(tmp_path))
    EventLog(events, "score").add("started")
    with (tmp_path / "score.jsonl").open("a") as file:
        file.write('{"time": "2026')
    assert [event["event"] for event in read_events(events, "score")] == ["started"]
    with (tmp_path / "score.jsonl").open("a") as file:
        file.write("\n")  # what a full disk leaves behind
    EventLog(events, "score").add("finished")
    assert [event["event"] for event in read_events(events, "score")] == ["started", "finished"]
