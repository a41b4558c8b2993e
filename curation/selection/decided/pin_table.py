"""Pins and bans: images that a person wants in the coreset or out of it, with author and reason.

They are an append-only table in the store, ``pins/``: each entry is a separate part, and the
manifest that names it is written last. Nothing is ever changed or deleted: a removal is another
entry. A cluster is recorded as its images, because the next selection numbers its clusters anew. If
an image has several entries, the last one counts.
"""

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from echostill.platform.errors import UsageError, nearest
from echostill.platform.tables.atomic import locked
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    encode_parquet,
    part_record,
    write_manifest,
)

PIN, BAN, REMOVE = "pin", "ban", "remove"
ACTIONS = (PIN, BAN)
AUTHOR_LENGTH, REASON_LENGTH = 200, 1000
PINS_SCHEMA = pa.schema(
    [
        ("pin_id", pa.string()),  # of the entry; a removal has its own
        ("time", pa.string()),  # UTC, ISO 8601
        ("action", pa.string()),  # pin, ban or remove
        ("removes", pa.string()),  # pin_id that a removal removes, otherwise empty
        ("coreset", pa.string()),  # coreset of the cluster, otherwise empty
        ("cluster", pa.int32()),  # -1 for individually named images
        ("author", pa.string()),
        ("reason", pa.string()),
        ("image_ids", pa.list_(pa.field("element", pa.string()))),
    ]
)
JOINED_SCHEMA = pa.schema([("image_id", pa.string()), ("reason", pa.string())])
_writing = threading.Lock()


@dataclass(frozen=True)
class Pin:
    """One pin or ban, and its removal, if it was removed.

    Attributes:
        pin_id: ``p-000001``, in the order of time.
        action: ``pin`` or ``ban``.
        image_ids: its images.
        coreset: coreset of the cluster; empty for individually named images.
        cluster: number in that coreset, otherwise -1.
        author, reason, time: who, why, when (UTC).
        removed: author, reason and time of the removal.
    """

    pin_id: str
    action: str
    image_ids: tuple[str, ...]
    coreset: str
    cluster: int
    author: str
    reason: str
    time: str
    removed: dict[str, str] | None = None


def read_pins(store: Store) -> list[Pin]:
    """Read every pin and ban in the order of time, including removed ones."""
    storage = store.pins()
    if not storage.exists(MANIFEST):
        return []
    rows = [row for part in Table.open(storage, "pin").parts() for row in part.to_pylist()]
    removals = {row["removes"]: row for row in rows if row["action"] == REMOVE}
    return [_pin(row, removals.get(row["pin_id"])) for row in rows if row["action"] != REMOVE]


def _pin(row: dict[str, Any], removal: dict[str, Any] | None) -> Pin:
    taken_back = removal and {key: removal[key] for key in ("author", "reason", "time")}
    return Pin(
        pin_id=row["pin_id"],
        action=row["action"],
        image_ids=tuple(row["image_ids"]),
        coreset=row["coreset"],
        cluster=row["cluster"],
        author=row["author"],
        reason=row["reason"],
        time=row["time"],
        removed=taken_back,
    )


def in_force(pins: Sequence[Pin]) -> dict[str, Pin]:
    """Return, for each image that is pinned or banned, the entry that counts: the last one."""
    return {image_id: pin for pin in pins if pin.removed is None for image_id in pin.image_ids}


def selection_tables(store: Store) -> tuple[pa.Table, pa.Table]:
    """Return the pins and bans that a selection must respect.

    Returns:
        (excluded, pinned): tables of image_id and reason, sorted by id, such as "banned by anna:
        phantom, not a patient".
    """
    found = sorted(in_force(read_pins(store)).items())
    excluded = [(i, f"banned by {p.author}: {p.reason}") for i, p in found if p.action == BAN]
    pinned = [(i, f"pinned by {p.author}: {p.reason}") for i, p in found if p.action == PIN]
    return _joined(excluded), _joined(pinned)


def _joined(rows: list[tuple[str, str]]) -> pa.Table:
    columns = [pa.array([row[place] for row in rows], pa.string()) for place in (0, 1)]
    return pa.Table.from_arrays(columns, schema=JOINED_SCHEMA)


def add_pin(
    store: Store,
    action: str,
    image_ids: Sequence[str],
    *,
    author: str,
    reason: str,
    coreset: str = "",
    cluster: int = -1,
) -> Pin:
    """Pin or ban images.

    Args:
        store: the store.
        action: ``pin`` or ``ban``.
        image_ids: full ids; the caller has looked them up in the pool.
        author: who does it.
        reason: why.
        coreset: name of the coreset of the cluster, if the images are a cluster.
        cluster: its number.

    Raises:
        UsageError: An unknown action, no images, or no (or too long an) author or reason.
    """
    if action not in ACTIONS:
        raise UsageError(
            f"unknown action '{action}': expected pin or ban.{nearest(action, ACTIONS)}"
        )
    if not image_ids:
        raise UsageError(f"nothing to {action}: name an image or a cluster.")
    values = {
        "action": action,
        "removes": "",
        "coreset": coreset,
        "cluster": cluster,
        "image_ids": sorted(set(image_ids)),
        **_signed(author, reason),
    }
    with _alone(store):
        return _pin(_append(store, values), None)


def remove_pin(store: Store, pin_id: str, *, author: str, reason: str) -> Pin:
    """Remove a pin or ban; both rows stay in the table.

    Raises:
        UsageError: There is no such pin (suggests the nearest), or it was already removed.
    """
    signed = _signed(author, reason)
    with _alone(store):
        pins = {pin.pin_id: pin for pin in read_pins(store)}
        if pin_id not in pins:
            raise UsageError(f"no pin '{pin_id}'.{nearest(pin_id, pins)}")
        removed = pins[pin_id].removed
        if removed is not None:
            raise UsageError(f"pin '{pin_id}' was already removed by {removed['author']}.")
        values = {
            "action": REMOVE,
            "removes": pin_id,
            "coreset": "",
            "cluster": -1,
            "image_ids": [],
            **signed,
        }
        removal = _append(store, values)
    kept = {key: removal[key] for key in ("author", "reason", "time")}
    return Pin(**{**pins[pin_id].__dict__, "removed": kept})


def _signed(author: str, reason: str) -> dict[str, str]:
    found = {"author": " ".join(author.split()), "reason": " ".join(reason.split())}
    for name, limit in (("author", AUTHOR_LENGTH), ("reason", REASON_LENGTH)):
        text = found[name]
        if not text:
            raise UsageError(f"{name} is empty: a pin needs an author and a reason.")
        if len(text) > limit:
            raise UsageError(f"{name} has {len(text)} characters; at most {limit} are allowed.")
        if not text.isprintable():
            raise UsageError(f"{name} has characters that are not printable: remove them.")
    return found


def _append(store: Store, values: dict[str, Any]) -> dict[str, Any]:
    storage = store.pins()
    parts: list[dict[str, Any]] = []
    if storage.exists(MANIFEST):
        parts = json.loads(storage.read(MANIFEST))["parts"]
    row = {
        "pin_id": f"p-{len(parts) + 1:06d}",
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **values,
    }
    data = encode_parquet(pa.Table.from_pylist([row], schema=PINS_SCHEMA))
    # A killed process may have left a part with this name: no manifest names it.
    name = f"part-{len(parts):05d}.parquet"
    storage.write(name, data)
    parts.append(part_record(name, 1, data))
    write_manifest(storage, stage="pin", schema=PINS_SCHEMA, parts=parts, fingerprint={})
    return row


@contextlib.contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Allow one writer at a time among the threads and, on a local store, the processes."""
    storage = store.pins()
    with _writing:
        if not storage.is_local:
            yield
            return
        lock = storage.local_path("lock")
        try:
            os.makedirs(os.path.dirname(lock), exist_ok=True)
            open(lock, "a").close()
        except OSError as error:
            raise UsageError(
                f"pins and bans are kept in the store, and '{store.root}' cannot be written "
                f"({error.strerror})."
            ) from None
        with locked(lock):
            yield
