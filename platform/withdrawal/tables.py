"""Parquet parts, written again without the rows of what is withdrawn; manifests and records too.

What says how a part is goes before the part itself, so that whoever begins again after a kill finds
by the part's rows what is left to do, and by the record that it knows of it already.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from echostill.platform.shards.outcome import decode_units, encode_counts
from echostill.platform.shards.records import Record, read_records, write_record
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    decode_parquet,
    encode_parquet,
    part_record,
)
from echostill.platform.tables.table_folder import PART
from echostill.platform.tables.versions import VERSIONS, recounted
from echostill.platform.withdrawal.rows import COLUMNS, Cut, link_copies
from echostill.platform.withdrawal.tombstones import ID, NOTE, Tombstones
from echostill.platform.withdrawal.traces import Traces

# Whose rows name images of the pool. Others, such as predictions, are about benchmarks.
POOLS = {"pool": "quarantine/ingest", "scores": "quarantine/score"}
_OTHERS = ("duplicates", "leaks", "pins", "origins", "review", "sources", "review/approvals")
# Classes of quarantined rows that are no errors, by their counts in records and manifests.
NO_ERRORS = {"expected": "NoImageError", "held_back": "NeedsReview"}


@dataclass(frozen=True)
class _Part:
    """A part as it becomes: which of its rows stay, its bytes, and classes of lost rows."""

    stays: np.ndarray
    rows: int
    data: bytes
    lost_ids: list[str]
    lost_classes: list[str]


def tables_of(store: Store) -> dict[str, Storage]:
    """Return the tables that may name images of the pool, by their places."""
    places = [*POOLS, *POOLS.values(), *_OTHERS]
    for name in store.storage.list("coresets", recursive=True):
        places.append("/".join(name.split("/")[:2]))
    found = {place: _folder(store, place) for place in dict.fromkeys(places)}
    return {place: folder for place, folder in found.items() if _parts(folder)}


def _folder(store: Store, place: str) -> Storage:
    plain = place.startswith("review")  # its manifest lies beside its parts
    return store.storage.at(place) if plain else store.table(place)


def _parts(storage: Storage) -> list[str]:
    return [name for name in storage.list() if name.endswith(PART)]


def column_parts(storage: Storage, columns: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield each part's name and those of the columns that it has, finished table or not."""
    for name in _parts(storage):
        yield name, part_columns(storage, name, columns)


def part_columns(storage: Storage, name: str, columns: Sequence[str]) -> pa.Table:
    """Return those of the columns that a part has."""
    with storage.filesystem.open_input_file(storage.arrow_path(name)) as source:
        file = pq.ParquetFile(source, pre_buffer=not storage.is_local)
        known = file.schema_arrow.names
        return file.read(columns=[one for one in columns if one in known], use_threads=False)


def cut_of(store: Store, place: str, traces: Traces, tombstones: Tombstones) -> Cut:
    """Return what a table loses."""
    if place == "sources":
        return Cut(traces, listing=True, tombstones=tombstones)
    storage = store.duplicates()
    if place == "duplicates" and storage.exists(MANIFEST):
        return Cut(traces, link_copies(Table.open(storage, "duplicates"), traces))
    return Cut(traces)


def count_rows(storage: Storage, cut: Cut) -> tuple[int, int]:
    """Return how many rows a table would lose, and how many others would lose a name."""
    lost = mended = 0
    for name in _parts(storage):
        stays, changes = _look(storage, name, cut)
        lost += int((~stays).sum())
        if changes:
            kept = part_columns(storage, name, COLUMNS).filter(pa.array(stays))
            after = cut.apply(kept, np.ones(kept.num_rows, dtype=bool))
            pairs = zip(kept.to_pylist(), after.to_pylist(), strict=True)
            mended += sum(one != other for one, other in pairs)
    return lost, mended


def _look(storage: Storage, name: str, cut: Cut) -> tuple[np.ndarray, bool]:
    """Return which rows of a part stay, and whether the part changes, reading little of it."""
    table = part_columns(storage, name, COLUMNS)
    stays = cut.keeps(table)
    return stays, not stays.all() or cut.apply(table, stays) is not table


def _rewritten(storage: Storage, name: str, cut: Cut) -> _Part | None:
    """Return a part as it becomes; None where it is not there or stays as it is."""
    if not storage.exists(name):
        return None
    stays, changes = _look(storage, name, cut)
    if not changes:
        return None
    table = decode_parquet(storage.read(name))
    gone = table.filter(~stays)
    kept = cut.apply(table, stays)
    ids = _values(gone, "image_id") + _values(gone, "id")
    classes = _values(gone, "error_class")
    return _Part(stays, kept.num_rows, encode_parquet(kept), ids, classes)


def _values(table: pa.Table, column: str) -> list[str]:
    found: list[str] = table[column].to_pylist() if column in table.column_names else []
    return found


def rewrite_tables(store: Store, traces: Traces, tombstones: Tombstones) -> None:
    """Write all tables of a store again without what is withdrawn; parts without it stay."""
    tables = tables_of(store)
    for place, held in POOLS.items():
        if place in tables or held in tables:
            table, quarantine = store.table(place), store.table(held)
            _rewrite_shards(table, quarantine, traces, tombstones, units_go=place == "scores")
    for place, storage in tables.items():
        if place in POOLS or place in POOLS.values():
            continue
        cut = cut_of(store, place, traces, tombstones)
        for name in _parts(storage):
            part = _rewritten(storage, name, cut)
            if part is None:
                continue
            _enter(storage, name, part)
            if part.rows == 0 and place == "review/approvals":
                storage.delete(name)
            else:
                storage.write(name, part.data)


def _rewrite_shards(
    table: Storage, quarantine: Storage, traces: Traces, tombstones: Tombstones, *, units_go: bool
) -> None:
    """Write the parts of a sharded stage and of its quarantine again.

    Args:
        table: The stage's table.
        quarantine: Its quarantine.
        traces: Of what is withdrawn.
        tombstones: Of the store, for the notes in the records.
        units_go: Whether a unit is a row of another table that loses it too. Otherwise it is a
            file, which is still listed.
    """
    cut, records = Cut(traces), {one["part"]["file"]: one for one in read_records(table)}
    for name in sorted({*_parts(table), *_parts(quarantine)}):
        part, held = (_rewritten(storage, name, cut) for storage in (table, quarantine))
        if part is None and held is None:
            continue
        record = records.get(name)
        if record is not None and not _says(record, name, part, held):
            changed = _record(record, name, part, held, units_go=units_go)
            notes = traces.mend_values(changed.get("notes", {}))
            changed["notes"] = _notes(notes, traces, tombstones, (part, held))
            write_record(table, changed)
        if held is not None:
            _enter(quarantine, name, held, keeps_empty=False)
            if held.rows:
                quarantine.write(name, held.data)
            else:
                quarantine.delete(name)
        if part is not None:
            _enter(table, name, part)
            table.write(name, part.data)
    _count(table, quarantine)


def _says(record: Record, name: str, part: _Part | None, held: _Part | None) -> bool:
    """Whether a record says already how its parts become."""
    own: bool = part is None or record["part"] == part_record(name, part.rows, part.data)
    if held is None:
        return own
    entry = part_record(name, held.rows, held.data) if held.rows else None
    return own and bool(record["quarantine"] == entry)


def _record(
    record: Record, name: str, part: _Part | None, held: _Part | None, *, units_go: bool
) -> Record:
    changed = dict(record)
    if part is not None:
        changed["part"] = part_record(name, part.rows, part.data)
    if held is not None:
        changed["quarantine"] = part_record(name, held.rows, held.data) if held.rows else None
        for count, kind in NO_ERRORS.items():
            if count in changed:
                changed[count] -= held.lost_classes.count(kind)
    if record["units"] is not None:
        counts = np.asarray(decode_units(record["units"]), dtype=np.int64).reshape(-1, 2)
        before = counts.copy()
        for column, one in enumerate((part, held)):
            if one is not None:
                owner = np.repeat(np.arange(len(counts)), before[:, column])
                counts[:, column] = np.bincount(owner[one.stays], minlength=len(counts))
        if units_go:
            stays = (counts.sum(axis=1) > 0) | (before.sum(axis=1) == 0)
            counts = counts[stays]
        changed["units"] = encode_counts(counts)
    return changed


def _notes(
    notes: dict[str, list[str]],
    traces: Traces,
    tombstones: Tombstones,
    parts: tuple[_Part | None, _Part | None],
) -> dict[str, list[str]]:
    """Return a shard's notes without withdrawn names, and with a tombstone for each lost row."""
    kept = {
        kind: [text for text in texts if not traces.prefixes.intersection(text.split())]
        for kind, texts in notes.items()
    }
    marks = {tombstones.mark(ID, one) for part in parts if part for one in part.lost_ids}
    kept[NOTE] = sorted({*kept.get(NOTE, ()), *marks})
    return {kind: texts for kind, texts in kept.items() if texts}


def _enter(storage: Storage, name: str, part: _Part, *, keeps_empty: bool = True) -> None:
    """Enter a part as it becomes in its table's manifest, where there is one."""
    if not storage.exists(MANIFEST):
        return
    manifest: dict[str, Any] = json.loads(storage.read(MANIFEST))
    entry = part_record(name, part.rows, part.data)
    entries = [entry if one["file"] == name else one for one in manifest["parts"]]
    if not part.rows and not keeps_empty:
        entries = [one for one in entries if one["file"] != name]
    rows = sum(one["rows"] for one in entries)
    grown = {VERSIONS: recounted(entries, manifest[VERSIONS])} if VERSIONS in manifest else {}
    _write_manifest(storage, {**manifest, "parts": entries, "rows": rows, **grown})


def _count(table: Storage, quarantine: Storage) -> None:
    """Let the manifest of a stage's table count its rows and those in quarantine."""
    if not table.exists(MANIFEST):
        return
    manifest: dict[str, Any] = json.loads(table.read(MANIFEST))
    held = json.loads(quarantine.read(MANIFEST))["rows"] if quarantine.exists(MANIFEST) else 0
    counts = {"rows_in": manifest["rows"] + held, "quarantined": held}
    if records := read_records(table):
        counts |= {name: sum(one.get(name, 0) for one in records) for name in NO_ERRORS}
    _write_manifest(table, {**manifest, **{k: v for k, v in counts.items() if k in manifest}})


def _write_manifest(storage: Storage, manifest: dict[str, Any]) -> None:
    storage.write(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
