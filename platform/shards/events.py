"""The event log of a stage: what happened when, one JSON object per line, in the store.

A local store has ``events/<stage>.jsonl``, which grows by whole lines. Object stores cannot append:
there each event is an object of its own, ``events/<stage>/<number>-<run>.json``. Only the driver
writes; a killed driver leaves a log that ends without ``finished``, ``failed`` or ``interrupted``.
"""

import json
import uuid
from datetime import UTC, datetime
from typing import Any

from echostill.platform.tables.storage import Storage

ENDINGS = ("finished", "failed", "interrupted")
FOLDER = "events"


class EventLog:
    """Writes the events of one run of a stage."""

    def __init__(self, events: Storage, stage: str) -> None:
        """Continue the log of a stage.

        Args:
            events: The store's folder of event logs.
            stage: The stage's name.
        """
        self._events, self._stage = events, stage
        self.run = uuid.uuid4().hex[:8]
        # Numbers go on where earlier runs ended, so that names sort in the order of events.
        self._number = 0 if events.is_local else len(events.list(stage))

    def add(self, event: str, **values: Any) -> None:
        """Log an event with whatever belongs to it (plain JSON values)."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "run": self.run, "stage": self._stage, "event": event, **values}
        data = json.dumps(line).encode() + b"\n"
        if self._events.is_local:
            self._events.append(f"{self._stage}.jsonl", data)
            return
        self._number += 1
        self._events.write(f"{self._stage}/{self._number:08d}-{self.run}.json", data)


def logged_stages(events: Storage) -> list[str]:
    """Return the names of the stages that have a log."""
    names = events.list(recursive=True)
    return sorted({name.partition("/")[0].removesuffix(".jsonl") for name in names})


def read_events(events: Storage, stage: str, after: int = 0) -> list[dict[str, Any]]:
    """Read a stage's events in order.

    Args:
        events: The store's folder of event logs.
        stage: The stage's name.
        after: How many events to leave out, because they were read before.
    """
    if not events.is_local:
        names = events.list(stage)[after:]
        return [json.loads(events.read(name)) for name in names]
    name = f"{stage}.jsonl"
    text = events.read(name).decode() if events.exists(name) else ""
    # What stands behind the last line's end is being written; a full disk leaves half a line.
    whole = [line for line in text.split("\n")[:-1] if line.endswith("}")]
    return [json.loads(line) for line in whole[after:]]
