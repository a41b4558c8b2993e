"""The event log of a stage: what happened when, one JSON object per line, in the store.

A local store has ``events/<stage>.jsonl``, which grows by whole lines. Object stores cannot append:
there each event is an object of its own, ``events/<stage>/<number>-<run>.json``. Only the driver
writes; a killed driver leaves a log that ends without ``finished``, ``failed`` or ``interrupted``.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
        self._events, self.stage = events, stage
        self.run = uuid.uuid4().hex[:8]
        # Numbers go on where earlier runs ended, so that names sort in the order of events.
        self._number = 0 if events.is_local else len(events.list(stage))

    def add(self, event: str, **values: Any) -> None:
        """Log an event with whatever belongs to it (plain JSON values)."""
        self.write(self.line(event, **values))

    def line(self, event: str, **values: Any) -> dict[str, Any]:
        """Return an event as it is written, with the time of now."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return {"time": now, "run": self.run, "stage": self.stage, "event": event, **values}

    def write(self, line: dict[str, Any]) -> None:
        """Write an event to the log."""
        data = json.dumps(line).encode() + b"\n"
        if self._events.is_local:
            self._events.append(f"{self.stage}.jsonl", data)
            return
        self._number += 1
        self._events.write(f"{self.stage}/{self._number:08d}-{self.run}.json", data)


class StageRun:
    """The events of one run of a stage, between its start and its ending.

    Attributes:
        stage: Name of the stage.
        outcome: What the ``finished`` event will say; whoever runs adds to it.
    """

    def __init__(self, log: EventLog | None, stage: str) -> None:
        """Begin with an open log, or without one: then nothing is written."""
        self._log, self.stage = log, stage
        self._waiting: list[dict[str, Any]] = []
        self.outcome: dict[str, Any] = {}

    def add(self, event: str, **values: Any) -> None:
        """Log an event, after those that waited for the store."""
        if self._log is None:
            return
        for line in [*self._waiting, self._log.line(event, **values)]:
            self._log.write(line)
        self._waiting = []

    def wait(self, event: str, **values: Any) -> None:
        """Keep an event back until another is added."""
        if self._log is not None:
            self._waiting.append(self._log.line(event, **values))


_running: ContextVar[StageRun | None] = ContextVar("stage run", default=None)


@contextmanager
def stage_run(
    events: Storage | None, stage: str, ready: Callable[[], bool] | None = None, **values: Any
) -> Iterator[StageRun]:
    """Log a run of a stage: ``started``, then ``finished``, ``failed`` or ``interrupted``.

    Begun inside another run of the same stage, it is that run: what it would have said with
    ``started`` becomes the event ``planned``, and the outer run says how it ended.

    Args:
        events: The store's folder of event logs; None logs nothing.
        stage: The stage's name.
        ready: Whether there is a store yet. Until there is, nothing is written: wrong usage must
            not make a store where there is none.
        values: Said with ``started``.
    """
    outer = _running.get()
    if outer is not None and outer.stage == stage:
        outer.add("planned", **values)
        yield outer
        return
    run = StageRun(None if events is None else EventLog(events, stage), stage)
    started = time.monotonic()
    (run.add if ready is None or ready() else run.wait)("started", **values)
    token = _running.set(run)
    try:
        yield run
    except BaseException as error:
        if ready is None or ready():
            if isinstance(error, Exception):
                run.add("failed", error=type(error).__name__, message=str(error))
            else:
                run.add("interrupted")
        raise
    finally:
        _running.reset(token)
    run.add("finished", **run.outcome, seconds=round(time.monotonic() - started, 3))


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
