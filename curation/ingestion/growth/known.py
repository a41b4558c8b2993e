"""The files that a pool was made from, version by version, as the store keeps them.

``sources/files.parquet`` has the files of the first version, ``sources/files-00002.parquet`` what
the second one added. ``growth/00002.json`` beside the pool says which shards these are; it is
written before the first of them is begun, so that whatever is killed can be continued.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from echostill.curation.ingestion.growth.changes import FILE
from echostill.platform.shards.outcome import decode_units
from echostill.platform.shards.records import delete_record, read_records
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, decode_parquet
from echostill.platform.tables.versions import Growth

GROWTH = "growth"
UNKNOWN = -1  # shard, size or time of a file in a listing of an earlier release


@dataclass(frozen=True)
class KnownFile:
    """A file of the pool, named as in the pool.

    Attributes:
        version: Of the pool, that added it.
        shard: Of the pool; ``UNKNOWN`` in a store of an earlier release.
        unit: Number of the file in its shard.
        name: Its path from its root, or the keyed hash of that.
        digest: Of what was said about it.
        location: Keyed hash of where it was; empty where that is unknown.
        root: Keyed hash of the source that it was listed under.
        id: Keyed hash of the user's own id; empty where it has none.
        size: In bytes.
        modified: When it was written, in nanoseconds.
    """

    version: int
    shard: int
    unit: int
    name: str
    digest: str
    location: str = ""
    root: str = ""
    id: str = ""
    size: int = UNKNOWN
    modified: int = UNKNOWN


@dataclass(frozen=True)
class KnownFiles:
    """All files of a pool, and its versions.

    Attributes:
        store: The store.
        files: In the order of the versions, and in each as they were listed.
        history: The versions: shards up to and with each, and what it was made from.
    """

    store: Store
    files: Sequence[KnownFile]
    history: Sequence[Growth]

    @classmethod
    def read(cls, store: Store) -> "KnownFiles | None":
        """Read what a store keeps; None where it has no pool that could grow."""
        pool, sources = store.pool(), store.sources()
        grown = [json.loads(pool.read(name)) for name in pool.list(GROWTH)]
        if not sources.exists(FILE) or not (grown or pool.exists(MANIFEST)):
            return None
        first = grown[0]["before"] if grown else _parts(pool)
        files = _read(sources, FILE, 1)
        history = [Growth(first, {"files": len(files)})]
        for record in grown:
            files += _read(sources, _listing(record["version"]), record["version"])
            history.append(Growth(record["parts"], record["made_from"]))
        return cls(store, files, history)

    @cached_property
    def declared(self) -> int:
        """Versions that are finished; all that are recorded where the pool itself is unfinished."""
        pool = self.store.pool()
        if not pool.exists(MANIFEST):
            return len(self.history)
        parts = _parts(pool)
        return sum(growth.parts <= parts for growth in self.history)

    def finished(self) -> "KnownFiles":
        """Return these without the versions that are not finished."""
        files = [file for file in self.files if file.version <= self.declared]
        return replace(self, files=files, history=self.history[: self.declared])

    def content(self, file: KnownFile) -> str:
        """Return the digest of a file's bytes as they were read; "" where it is not known."""
        digests = self._records.get(file.shard, {}).get("digests", [])
        return str(digests[file.unit]) if file.unit < len(digests) else ""

    def gave_nothing(self, file: KnownFile) -> bool:
        """Return whether a file gave no image, and something in quarantine."""
        units = decode_units(self._records.get(file.shard, {}).get("units") or [])
        return file.unit < len(units) and units[file.unit][0] == 0 < units[file.unit][1]

    @cached_property
    def _records(self) -> Mapping[int, dict[str, Any]]:
        return {record["shard"]: record for record in read_records(self.store.pool())}


def add_version(
    store: Store, known: KnownFiles, listing: bytes, shards: int, made_from: Mapping[str, Any]
) -> None:
    """Record a further version of the pool, before any of its shards is begun."""
    number, before = len(known.history) + 1, known.history[-1].parts
    # The listing first: a version exists when its record does.
    store.sources().write(_listing(number), listing)
    record = {
        "version": number,
        "before": before,
        "parts": before + shards,
        "made_from": dict(made_from),
    }
    text = json.dumps(record, indent=1, sort_keys=True)
    store.pool().write(_record(number), text.encode())


def drop_unfinished(store: Store, known: KnownFiles) -> None:
    """Forget the versions that are not finished, and what there is of their shards."""
    pool, quarantine = store.pool(), store.quarantine("ingest")
    first = known.history[known.declared - 1].parts
    for shard in range(first, known.history[-1].parts):
        delete_record(pool, shard)
        for folder in (pool, quarantine):
            folder.delete(f"part-{shard:05d}.parquet")
    for number in range(len(known.history), known.declared, -1):
        pool.delete(_record(number))
        store.sources().delete(_listing(number))


def _parts(pool: Storage) -> int:
    return len(json.loads(pool.read(MANIFEST))["parts"])


def _listing(version: int) -> str:
    return f"files-{version:05d}.parquet"


def _record(version: int) -> str:
    return f"{GROWTH}/{version:05d}.json"


def _read(sources: Storage, name: str, version: int) -> list[KnownFile]:
    table = decode_parquet(sources.read(name))
    rows = table.to_pylist()
    unit: dict[int, int] = {}
    files = []
    for row in rows:
        shard = row.get("shard", UNKNOWN)
        files.append(KnownFile(version=version, unit=unit.get(shard, 0), **{"shard": shard, **row}))
        unit[shard] = unit.get(shard, 0) + 1
    return files
