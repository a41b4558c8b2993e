"""The quarantine of a store: what gave no row, and why, also while the stage is not finished."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from echostill.platform.tables.store import Store
from echostill.platform.tables.table import decode_parquet

STAGES = ("ingest", "score")  # those that have one


def quarantine_parts(store: Store) -> Iterator[tuple[str, pa.Table]]:
    """Yield the stage and the rows of each part of the quarantine, in order.

    The parts of a stage that ended early, as with too many errors, are there too.
    """
    for stage in STAGES:
        storage = store.quarantine(stage)
        for name in sorted(storage.list()):
            if name.endswith(".parquet"):
                yield stage, decode_parquet(storage.read(name))


def quarantine_rows(store: Store) -> list[dict[str, Any]]:
    """Return all rows of the quarantine.

    Raises:
        UsageError: There is no such store.
    """
    if not any(store.storage.exists(part) for part in ("quarantine", "pool", "events")):
        store.open_pool()  # raises, and says how to make one
    return [row for _, part in quarantine_parts(store) for row in part.to_pylist()]
