"""Records of finished shards: ``done/<shard>.json``, written after the files that they name.

A shard is finished when its record is there and its files have the sizes they were written with:
what was cut short, or damaged later, is made again.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from echostill.platform.tables.storage import Storage

Record = dict[str, Any]
READS_AT_ONCE = 16  # of small files, which on an object store take a round trip each


def write_record(storage: Storage, record: Record) -> None:
    """Declare a shard finished; ``record["shard"]`` is its number."""
    storage.write(_name(record["shard"]), json.dumps(record, sort_keys=True).encode())


def delete_record(storage: Storage, shard: int) -> None:
    """Declare a shard unfinished; one that has no record is so already."""
    storage.delete(_name(shard))


def read_record(storage: Storage, shard: int) -> Record | None:
    """Read a shard's record; None where it has none."""
    name = _name(shard)
    if not storage.exists(name):
        return None
    record: Record = json.loads(storage.read(name))
    return record


def read_records(storage: Storage) -> list[Record]:
    """Read all records."""
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return [json.loads(data) for data in pool.map(storage.read, storage.list("done"))]


def are_whole(files: Iterable[Mapping[str, Any]], size_of: Callable[[str], int | None]) -> bool:
    """Say whether files have the sizes they were written with.

    Args:
        files: Entries of a record: ``file`` and ``bytes``.
        size_of: Gives a file's size, None where it is missing.
    """
    return all(size_of(entry["file"]) == entry["bytes"] for entry in files)


def _name(shard: int) -> str:
    return f"done/{shard:05d}.json"
