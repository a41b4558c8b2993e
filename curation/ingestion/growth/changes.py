"""Which files an ingest was asked to read, in shards, and how another listing differs."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from echostill.curation.deidentification.pseudonyms import Pseudonymiser, keyed_hash
from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.manifests.words import Words
from echostill.curation.ingestion.settings import Source
from echostill.platform.imaging.files import bucket_of
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.table import decode_parquet, encode_pieces
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
_DESCRIBED = tuple(sorted({one.name for one in fields(Source)} - _PASSING))
_json = json.JSONEncoder().encode


def divided(sources: Sources, files: int, size: int) -> list[slice]:
    """Divide the sources into shards, in their order, so that cines do not fill the memory.

    Args:
        sources: What is divided.
        files: Files of a shard at most.
        size: Bytes of cines, volumes and archives after which a shard is full.
    """
    starts, filled = [0], 0
    for row, each in enumerate(sources.values("size")):
        if row and (row - starts[-1] >= files or filled + each > size):
            starts.append(row)
            filled = 0
        filled += each
    stops = [*starts[1:], len(sources)]
    return [slice(*rows) for rows in zip(starts, stops, strict=True)] if sources else []


def shard_name(payload: list[dict[str, Any]]) -> str:
    """Return a name for a shard that depends only on its files and reveals none of them."""
    return sha256(json.dumps(payload, sort_keys=True).encode())[:16]


class _Entries:
    """What the pool depends on of each source, as JSON, veiled as in the pool."""

    def __init__(self, sources: Sources, pseudonymiser: Pseudonymiser) -> None:
        self._name = pseudonymiser.name
        self._words = {
            key: words.map(partial(self._item, key))
            for key, words in sources.words.items()
            if key in _DESCRIBED
        }
        if sources.id is None:
            self._words["id"] = Words.same(self._item("id", ""), len(sources))

    def _item(self, key: str, value: object) -> str:
        if key in _LATER and not value:
            return ""
        return f'"{key}": {_json(self._name(str(value)))}, '

    def of(self, rows: slice, names: Sequence[str], ids: Sequence[str]) -> list[str]:
        """Return the entries of some sources, their values in the order of their names.

        Args:
            rows: Of the sources.
            names: As in the pool.
            ids: The user's own.
        """
        columns: dict[str, Iterable[str]] = {key: each[rows] for key, each in self._words.items()}
        columns["name"] = [f'"name": {_json(name)}, ' for name in names]
        if "id" not in columns:
            columns["id"] = [self._item("id", own) for own in ids]
        items = zip(*(columns[key] for key in _DESCRIBED), strict=True)
        return [f"{{{''.join(each)[:-2]}}}" for each in items]


def listing(
    sources: Sources,
    shards: Sequence[slice],
    pseudonymiser: Pseudonymiser,
    first: int = 0,
    tombstones: Tombstones | None = None,
) -> tuple[bytes, str]:
    """List a row for each file: who it is, what was said about it, and how it looks on disk.

    Args:
        sources: The files.
        shards: Their rows by shard.
        pseudonymiser: Hides names and places.
        first: Number of the first shard.
        tombstones: Of withdrawn files, which get a digest for a name.

    Returns:
        The table as Parquet, and a digest of what was said about all files, shard by shard.
    """
    gone, place = tombstones or Tombstones(), Places(pseudonymiser)
    entries, roots = _Entries(sources, pseudonymiser), sources.words["root"].map(place.of)
    digest = hashlib.sha256(b"[")  # of the entries' JSON, a list in a list

    def table(number: int, rows: slice) -> pa.Table:
        part = sources[rows]
        names, ids = list(map(pseudonymiser.name, part.values("name"))), part.values("id")
        texts = entries.of(rows, names, ids)
        digest.update(f"{', ' if number > first else ''}[{', '.join(texts)}]".encode())
        files = part.values("file")
        marks = stamps(files)
        columns = {
            "name": [gone.name(name) for name in names] if gone else names,
            "digest": [sha256(text.encode())[:16] for text in texts],
            "shard": [number] * len(part),
            "location": [place.of(file) for file in files],
            "root": list(roots[rows]),
            "id": [place.of(own) for own in ids],
            "size": [size for size, _ in marks],
            "modified": [modified for _, modified in marks],
        }
        return pa.table(columns, schema=LISTING_SCHEMA)

    pieces = (table(number, rows) for number, rows in enumerate(shards, start=first))
    data = encode_pieces(LISTING_SCHEMA, pieces)
    digest.update(b"]")
    return data, digest.hexdigest()


def content_mark(key: bytes, content: str) -> str:
    """Return what the store keeps of a digest of a file's bytes; nothing for nothing."""
    return keyed_hash(key, "content", content)[:16] if content else ""


class Places:
    """Hides where files are, always: a folder may be called by a patient's name."""

    def __init__(self, pseudonymiser: Pseudonymiser) -> None:
        self._key = pseudonymiser.key

    def of(self, text: str) -> str:
        """Return a keyed hash, or nothing for nothing."""
        return keyed_hash(self._key, "place", text) if text else ""


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


def keep(folder: Storage, data: bytes) -> None:
    """Keep the listing of an ingest in the store."""
    folder.write(FILE, data)


def describe_changes(folder: Storage, listed: bytes) -> str:
    """Say how a listing differs from the one that was kept, naming a few of the files."""
    new = decode_parquet(listed)
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
