"""Which files an ingest was asked to read, in shards, and how another listing differs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from echostill.curation.deidentification.pseudonyms import Pseudonymiser
from echostill.curation.ingestion.settings import Source
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.table import decode_parquet, encode_parquet

FILE = "files.parquet"
NAMED = 3  # files that a message names
# What may change while the pool stays the same: where the files lie, and what mending changes.
_PASSING = {"file", "size", "problem"}
_LATER = {"study", "viewer"}  # what earlier releases did not know is left out where it is empty


def divided(sources: Sequence[Source], files: int, size: int) -> list[list[Source]]:
    """Divide the sources into shards, so that cines do not fill the memory.

    Args:
        sources: In their order.
        files: Files of a shard at most.
        size: Bytes of cines, volumes and archives after which a shard is full.
    """
    shards: list[list[Source]] = []
    filled = 0
    for source in sources:
        full = bool(shards) and (len(shards[-1]) >= files or filled + source.size > size)
        if not shards or full:
            shards.append([])
            filled = 0
        shards[-1].append(source)
        filled += source.size
    return shards


def shard_name(payload: list[dict[str, Any]]) -> str:
    """Return a name for a shard that depends only on its files and reveals none of them."""
    return sha256(json.dumps(payload, sort_keys=True).encode())[:16]


def entries(sources: Sequence[Source], pseudonymiser: Pseudonymiser) -> list[dict[str, str]]:
    """Return what the pool depends on of each source, as plain values, veiled as in the pool."""
    return [
        {
            key: pseudonymiser.name(str(value))
            for key, value in asdict(one).items()
            if key not in _PASSING and (value or key not in _LATER)
        }
        for one in sources
    ]


def listing(sources: Sequence[Source], pseudonymiser: Pseudonymiser) -> pa.Table:
    """Return the name of each source and a digest of what was said about it."""
    found = entries(sources, pseudonymiser)
    digests = [sha256(json.dumps(entry, sort_keys=True).encode())[:16] for entry in found]
    return pa.table({"name": [entry["name"] for entry in found], "digest": digests})


def keep(folder: Storage, table: pa.Table) -> None:
    """Keep the listing of an ingest in the store."""
    folder.write(FILE, encode_parquet(table))


def describe_changes(folder: Storage, new: pa.Table) -> str:
    """Say how a listing differs from the one that was kept, naming a few of the files."""
    if not folder.exists(FILE):
        return f"other files ({new.num_rows} now)"
    before, after = (
        dict(zip(table["name"].to_pylist(), table["digest"].to_pylist(), strict=True))
        for table in (decode_parquet(folder.read(FILE)), new)
    )
    added = [name for name in after if name not in before]
    removed = [name for name in before if name not in after]
    changed = [name for name in after if name in before and before[name] != after[name]]
    touched = [*added, *removed, *changed]
    if not touched:
        return "the same files in another order"
    named = ", ".join(touched[:NAMED]) + (", ..." if len(touched) > NAMED else "")
    files = "file" if len(added) == 1 else "files"
    return f"{len(added)} {files} added, {len(removed)} removed, {len(changed)} changed: {named}"
