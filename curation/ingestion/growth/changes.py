"""Which files an ingest was asked to read, in shards, and how another listing differs."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from echostill.curation.deidentification.pseudonyms import Pseudonymiser, keyed_hash
from echostill.curation.ingestion.settings import Source
from echostill.platform.imaging.files import bucket_of
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.table import decode_parquet, encode_parquet
from echostill.platform.withdrawal.tombstones import Tombstones

FILE = "files.parquet"
LISTING_SCHEMA = pa.schema(
    [
        ("name", pa.string()),  # as in the pool: a path from its root, or its keyed hash
        ("digest", pa.string()),  # of what was said about the file
        ("shard", pa.int32()),
        ("location", pa.string()),  # keyed hashes of where it is, of its source and of its own id
        ("root", pa.string()),
        ("id", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
    ]
)
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


@dataclass(frozen=True)
class ListedFile:
    """A file that is listed now, by the names that the store has for it.

    Attributes:
        source: The file, with what is said about it.
        root: The source of the configuration under which it was listed.
    """

    source: Source
    root: str


def listing(
    shards: Sequence[Sequence[ListedFile]],
    pseudonymiser: Pseudonymiser,
    first: int = 0,
    tombstones: Tombstones | None = None,
) -> pa.Table:
    """Return a row for each file: who it is, what was said about it, and how it looks on disk.

    Args:
        shards: The files by shard.
        pseudonymiser: Hides names and places.
        first: Number of the first shard.
        tombstones: Of withdrawn files, which get a digest for a name.
    """
    gone = tombstones or Tombstones()
    files = [one for shard in shards for one in shard]
    found = entries([one.source for one in files], pseudonymiser)
    marks = stamps([one.source.file for one in files])
    place = Places(pseudonymiser)
    columns = {
        "name": [gone.name(entry["name"]) for entry in found],
        "digest": [sha256(json.dumps(entry, sort_keys=True).encode())[:16] for entry in found],
        "shard": [number for number, shard in enumerate(shards, start=first) for _ in shard],
        "location": [place.of(one.source.file) for one in files],
        "root": [place.of(one.root) for one in files],
        "id": [place.of(one.source.id) for one in files],
        "size": [size for size, _ in marks],
        "modified": [modified for _, modified in marks],
    }
    return pa.table(columns, schema=LISTING_SCHEMA)


def content_mark(key: bytes, content: str) -> str:
    """Return what the store keeps of a digest of a file's bytes; nothing for nothing."""
    return keyed_hash(key, "content", content)[:16] if content else ""


class Places:
    """Hides where files are, always: a folder may be called by a patient's name."""

    def __init__(self, pseudonymiser: Pseudonymiser) -> None:
        self._key = pseudonymiser.key
        self._known: dict[str, str] = {}

    def of(self, text: str) -> str:
        """Return a keyed hash, or nothing for nothing."""
        if text and text not in self._known:
            self._known[text] = keyed_hash(self._key, "place", text)
        return self._known.get(text, "")


def stamps(files: Sequence[str]) -> list[tuple[int, int]]:
    """Return the size in bytes and the time of writing in nanoseconds of files, local or not.

    A file that is not there, or cannot be looked at, has zeros: reading it gives the reason.
    """
    found = [(0, 0) if not file or "://" in file else _local_stamp(file) for file in files]
    remote: dict[str, list[int]] = {}
    for row, file in enumerate(files):
        if "://" in file:
            remote.setdefault(file.split("/", 3)[2], []).append(row)
    for rows in remote.values():
        places = [bucket_of(files[row]) for row in rows]
        keys = [storage.arrow_path(key) for storage, key in places]
        for row, info in zip(rows, places[0][0].filesystem.get_file_info(keys), strict=True):
            if info.type == pafs.FileType.File:
                found[row] = (int(info.size), int(info.mtime_ns or 0))
    return found


def _local_stamp(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


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
