"""What the stages left in a store, for benchmarks that compare two of them."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from echostill.platform.shards.events import read_events
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store


def events(store: str, stage: str) -> list[dict[str, Any]]:
    """Return the events that a stage has logged."""
    return read_events(Store(store).events(), stage)


def seconds(store: str, stage: str) -> float:
    """Seconds of a stage, over all commands that it took: of its shards alone, where it has any."""
    logged = events(store, stage)
    first = next((event for event in logged if event["event"] == "planned"), logged[0])
    start, end = (datetime.fromisoformat(event["time"]) for event in (first, logged[-1]))
    return round((end - start).total_seconds(), 1)


def repeated(store: str, stage: str) -> int:
    """Count the shards that were begun, cut short and run again."""
    return sum(len(event.get("repeated", ())) for event in events(store, stage))


def files(store: str, names: Sequence[str]) -> list[str]:
    return [name for name in Storage(store).list(recursive=True) if name.startswith(tuple(names))]


def contents(store: str, names: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a store below some names."""
    return {name: Storage(store).read(name) for name in files(store, names)}


def differing(one: str, other: str, names: Sequence[str]) -> list[str]:
    """Return which files of two stores are not the same, byte for byte."""
    mine, theirs = contents(one, names), contents(other, names)
    if not mine:
        raise SystemExit(f"FAILED: there is nothing to compare below {names} in {one}")
    return sorted(
        name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)
    )


def copy(source: str, target: str, names: Sequence[str]) -> None:
    """Copy what a stage finds from one store to another."""
    for name, data in contents(source, names).items():
        Storage(target).write(name, data)
