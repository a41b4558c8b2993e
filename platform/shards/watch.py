"""Watching a store: the event logs of its stages, in words or as JSON, until they have ended."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from echostill.platform.errors import UsageError
from echostill.platform.shards.events import ENDINGS, logged_stages, read_events
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store

POLL_SECONDS = 1.0


def watch(root: str, *, follow: bool = True, as_json: bool = False) -> None:
    """Print the events of a store's stages, and what is added to them.

    Args:
        root: The store.
        follow: Go on until the last run of every stage has ended; a run that was killed never
            says so, and is followed until the reader stops.
        as_json: One JSON object per event instead of words.

    Raises:
        UsageError: There is no such store.
    """
    storage = Store(root).storage
    events = Store(root).events()
    if not storage.exists():
        raise UsageError(f"no store '{root}' to watch.")
    seen: dict[str, int] = {}
    running: dict[str, bool] = {}
    while True:
        for event in _new_events(events, seen):
            running[event["stage"]] = event["event"] not in ENDINGS
            print(json.dumps(event) if as_json else describe(event), flush=True)
        if not follow or not any(running.values()):
            break
        time.sleep(POLL_SECONDS)
    if not seen and not as_json:
        print(f"no stage of '{root}' has logged anything yet")


def _new_events(events: Storage, seen: dict[str, int]) -> list[dict[str, Any]]:
    """Return what was added since the last look, in the order of time over all stages."""
    added = []
    for stage in logged_stages(events):
        found = read_events(events, stage, seen.get(stage, 0))
        seen[stage] = seen.get(stage, 0) + len(found)
        added += found
    return sorted(added, key=lambda event: str(event["time"]))


def describe(event: dict[str, Any]) -> str:
    """Say an event in words, on one line."""
    moment = datetime.fromisoformat(event["time"]).astimezone()
    return f"{moment:%Y-%m-%d %H:%M:%S} {event['stage']}: {_words(event)}"


def _words(event: dict[str, Any]) -> str:
    kind = event["event"]
    if kind == "started":
        what = "tries the quarantine again" if event.get("mode") == "retry" else "starts"
        return f"{what}: {_shards(event)}" if "shards" in event else what
    if kind == "planned":
        return _shards(event)
    if kind == "resumed":
        return (
            f"goes on: {event['shards']} shard(s) finished earlier with {event['rows_out']} rows "
            f"and {event['quarantined']} quarantined; {len(event['repeated'])} cut short, run again"
        )
    if kind == "shard":
        return (
            f"{event['done']}/{event['shards']} shards, {event['rows_out_so_far']} rows at "
            f"{event['rows_per_second']:.3g}/s, {event['quarantined_so_far']} quarantined"
            f"{_waits(event)}{_end(event)}"
        )
    if kind == "finished":
        if event.get("already_done"):
            return f"nothing to do: {event['message']}"
        if "rows_in" not in event:
            message = event.get("message")
            return f"finished{f': {message}' if message else ''} ({event['seconds']:.1f} s)"
        return (
            f"finished: {event['rows_in']} rows in = {event['rows_out']} rows out + "
            f"{event['quarantined']} quarantined ({event['seconds']:.1f} s)"
        )
    if kind == "failed":
        return f"failed: {event['message']}"
    return str(kind)


def _shards(event: dict[str, Any]) -> str:
    return f"{event['shards']} shard(s), {event['plan']}"


def _waits(event: dict[str, Any]) -> str:
    share = event.get("wait_share")
    return "" if share is None else f", waits for images {share:.0%} of the time"


def _end(event: dict[str, Any]) -> str:
    left = event["seconds_left"]
    if left is None or event["done"] == event["shards"]:
        return ""
    end = datetime.fromisoformat(event["time"]).astimezone(UTC) + timedelta(seconds=left)
    return f", about {left:.0f} s left (ends {end.astimezone():%H:%M})"
