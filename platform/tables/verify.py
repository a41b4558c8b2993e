"""Re-reading a store: is everything that claims to be finished what its manifest says?"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from echostill.platform.errors import UsageError, nearest
from echostill.platform.names import is_name
from echostill.platform.tables.fingerprint import FINGERPRINT, difference
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store, table_of
from echostill.platform.tables.table import MANIFEST, Table, digest_of_parts, open_parquet
from echostill.platform.tables.versions import latest, made_from_pool, version_with, versions
from echostill.platform.withdrawal.proof import find_withdrawn
from echostill.platform.withdrawal.tombstones import read_tombstones

# Where the commands write tables, runs and reports with a manifest.
_PLACE = re.compile(
    "pool|sources|scores|duplicates|leaks|pins|contributors|origins|review|quarantine/[^/]+"
    "|(coresets|runs|reports|predictions|teacher-cache|sweeps|benchmarks)/[^/]+"
)
_TEXT = pa.large_string()  # of ids: those of all parts are one array
_ROWS = 65_536  # of a column that are read at a time


@dataclass
class Verification:
    """What was looked at and what was found wrong."""

    store: str
    checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "store": self.store,
            "sound": self.sound,
            "checked": self.checked,
            "problems": self.problems,
        }

    def describe(self) -> str:
        """Say it in words."""
        lines = [f"ok       {line}" for line in self.checked]
        lines += [f"PROBLEM  {line}" for line in self.problems]
        verdict = "sound" if self.sound else f"{len(self.problems)} problem(s)"
        return "\n".join([*lines, f"{self.store}: {verdict}"])


def verify_store(root: str) -> Verification:
    """Check every manifest of a store: checksums, rows, schemas, fingerprints, accounting.

    Raises:
        UsageError: There is no such store, or nothing in it is finished.
    """
    store = Store(root)
    result = Verification(root)
    names = store.storage.list(recursive=True)
    manifests = [name for name in names if name == MANIFEST or name.endswith(f"/{MANIFEST}")]
    if not manifests:
        parent, _, last = store.root.rpartition("/")
        siblings = _siblings(parent)
        raise UsageError(
            f"no finished table in '{root}': is it a store?{nearest(last, siblings)} "
            "`echostill run` makes one."
        )
    sound: set[str] = set()
    for manifest in manifests:
        folder = manifest.rpartition("/")[0]
        name = table_of(folder)
        found = len(result.problems)
        if not _PLACE.fullmatch(name) or not is_name(name.rpartition("/")[2]):
            result.problems.append(
                f"{folder or MANIFEST}: is no place of a store's table or run, and no command "
                "reads it: move it out of the store"
            )
            continue
        storage = store.storage.at(name) if folder == name else store.table(name)
        if not storage.exists(MANIFEST):
            result.problems.append(f"{name}: its folder is gone, and '{folder}' still names parts")
            continue
        try:
            verify_folder(storage, name, result)
        except (KeyError, TypeError, AttributeError):
            result.problems.append(f"{folder}: the manifest is not one that echostill wrote")
        if len(result.problems) == found:
            sound.add(name)
    _verify_links(store, sound, result)
    _verify_withdrawn(store, result)
    return result


def _verify_withdrawn(store: Store, result: Verification) -> None:
    """Check that nothing of what was withdrawn is in any file."""
    tombstones = read_tombstones(store.storage)
    if not tombstones:
        return
    files, found = find_withdrawn(store, tombstones)
    for name, what in found.items():
        shown = name if what != "its id" else name.rpartition("/")[0]  # a name may be an id
        result.problems.append(
            f"{shown}: holds {what} of an image that was withdrawn: withdraw it again, or delete "
            "the file"
        )
    if not found:
        result.checked.append(f"withdrawn: nothing of it in {files} files")


def _siblings(parent: str) -> list[str]:
    storage = Storage(parent or "/")
    if not storage.is_local or not storage.exists():
        return []
    import os

    return os.listdir(storage.local_path())


def verify_folder(storage: Storage, folder: str, result: Verification) -> None:
    """Check one manifest: its parts and files, their checksums, rows and schema, the fingerprint.

    Args:
        storage: The folder with the manifest.
        folder: What it is called in the result.
        result: Takes what was checked, and each problem.

    Raises:
        KeyError, TypeError, AttributeError: The manifest is none that echostill wrote.
    """
    found = len(result.problems)
    try:
        manifest = json.loads(storage.read(MANIFEST))
    except ValueError:
        result.problems.append(f"{folder}: the manifest is not JSON")
        return
    if not {"parts", "files"} & manifest.keys():
        raise KeyError("parts")  # as where an entry of it lacks something
    entries = manifest.get("parts", []) + manifest.get("files", [])
    for entry in entries:
        where = f"{folder}/{entry['file']}"
        if storage.size(entry["file"]) is None:
            result.problems.append(f"{where}: missing")
            continue
        data = storage.read(entry["file"])
        if sha256(data) != entry["sha256"]:
            result.problems.append(f"{where}: the checksum is not the manifest's")
        elif "rows" in entry:
            _verify_part(data, entry, manifest, where, result)
    if "parts" in manifest:
        rows = sum(entry["rows"] for entry in manifest["parts"])
        if rows != manifest["rows"]:
            result.problems.append(f"{folder}: parts hold {rows} rows, not {manifest['rows']}")
    if storage.exists(FINGERPRINT):
        try:
            claimed = json.loads(storage.read(FINGERPRINT))
        except ValueError:
            result.problems.append(f"{folder}: the fingerprint is not JSON")
            return
        if claimed["digest"] != manifest["fingerprint"]["digest"]:
            changes = "; ".join(difference(claimed, manifest["fingerprint"]))
            result.problems.append(f"{folder}: fingerprint and manifest differ ({changes})")
    if len(result.problems) == found:
        what = f"{manifest['rows']} rows" if "rows" in manifest else f"{len(entries)} files"
        result.checked.append(f"{folder}: {what}, {len(entries)} checksum(s)")


def _verify_part(
    data: bytes, entry: dict[str, Any], manifest: dict[str, Any], where: str, result: Verification
) -> None:
    try:
        rows, found = _read_through(data)
    except (pa.ArrowInvalid, OSError) as error:
        result.problems.append(f"{where}: not readable as Parquet ({error})")
        return
    if rows != entry["rows"]:
        result.problems.append(f"{where}: {rows} rows, the manifest says {entry['rows']}")
    schema = [[field.name, str(field.type)] for field in found]
    if schema != manifest["schema"]:
        result.problems.append(f"{where}: the columns are not the manifest's")


def _read_through(data: bytes) -> tuple[int, pa.Schema]:
    """Decode a part, a row group at a time; return its rows and its schema."""
    with open_parquet(data) as file:
        groups = range(file.num_row_groups)
        rows = sum(file.read_row_group(group, use_threads=False).num_rows for group in groups)
        return rows, file.schema_arrow


def _verify_links(store: Store, sound: set[str], result: Verification) -> None:
    """Check what holds between sound tables: accounting, unique ids, the same rows in each."""
    ids: dict[str, pa.ChunkedArray] = {}
    unique: set[str] = set()
    for name, storage in (("pool", store.pool()), ("scores", store.scores())):
        if name not in sound:
            continue
        manifest = json.loads(storage.read(MANIFEST))
        # A version that is being made may have written its quarantine and not yet its table.
        held = _rows(store.quarantine(manifest["stage"]), {p["file"] for p in manifest["parts"]})
        if manifest["rows"] + held != manifest["rows_in"]:
            result.problems.append(
                f"{name}: {manifest['rows_in']} rows in, but {manifest['rows']} out "
                f"and {held} quarantined"
            )
        ids[name] = _column(Table(storage, manifest), "image_id", _TEXT)
        if _unique(ids[name]):
            unique.add(name)
        else:
            result.problems.append(f"{name}: image ids are not unique")
        result.checked.append(
            f"{name}: {manifest['rows_in']} rows in = {manifest['rows']} out + {held} quarantined"
        )
    tables = {name: _table(store.table(name)) for name in ids}
    for name, table in tables.items():
        result.problems += _verify_versions(name, table)
    if "pool" in ids and "scores" in ids:
        scored = version_with(tables["pool"], made_from_pool(tables["scores"]))
        pool_ids = ids["pool"] if scored is None else ids["pool"][: scored.rows]
        held_ids = _quarantined_ids(store.quarantine("score"), tables["scores"])
        scored_or_held = pa.chunked_array([*ids["scores"].chunks, *held_ids.chunks], _TEXT)
        if not _same(pool_ids, scored_or_held, "pool" in unique):
            result.problems.append("scores: its rows are not the pool's")
        if len(pool_ids) < len(ids["pool"]):
            later = len(ids["pool"]) - len(pool_ids)
            result.checked.append(f"scores: {later} images of a later pool are not scored yet")
    for name in store.coreset_names():
        if f"coresets/{name}" not in sound:
            continue
        storage = store.coreset(name)
        manifest = json.loads(storage.read(MANIFEST))
        made_from = manifest["fingerprint"].get("inputs", {}).get("scores", "")
        own = version_with(tables["scores"], made_from) if "scores" in ids else None
        coreset = Table(storage, manifest)
        if "scores" in ids:
            scored_ids = ids["scores"][: own.rows] if own else ids["scores"]
            own_ids = _column(coreset, "image_id", _TEXT)
            if not _same(scored_ids, own_ids, "scores" in unique):
                result.problems.append(f"coresets/{name}: its rows are not the scores'")
        chosen = pc.sum(_column(coreset, "selected", pa.bool_()), min_count=0).as_py()
        if chosen != manifest.get("budget", chosen):
            result.problems.append(
                f"coresets/{name}: {chosen} selected, the budget is {manifest['budget']}"
            )
        result.checked.append(f"coresets/{name}: {chosen} of {manifest['rows']} selected")


def _rows(storage: Storage, shards: set[str]) -> int:
    """Rows in quarantine of these shards, whose parts have the names of the table's."""
    if not storage.exists(MANIFEST):
        return 0
    parts = json.loads(storage.read(MANIFEST))["parts"]
    return sum(int(part["rows"]) for part in parts if part["file"] in shards)


def _column(
    table: Table, name: str, kind: pa.DataType, parts: Collection[str] | None = None
) -> pa.ChunkedArray:
    """Read one column of a table, or of those parts alone that are named, as values of a kind."""
    chunks: list[pa.Array] = []
    for part in table.part_names:
        if (parts is None or part in parts) and table.storage.exists(part):
            chunks += [batch[name].cast(kind) for batch in table.batches(part, [name], _ROWS)]
    return pa.chunked_array(chunks, kind)


def _unique(values: pa.ChunkedArray) -> bool:
    return int(pc.count_distinct(values, mode="all").as_py()) == len(values)


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray, unique: bool) -> bool:
    """Whether two columns hold the same values, each as often, in any order.

    Args:
        one: A column.
        other: Another of the same type.
        unique: Whether no value is in ``one`` twice. Then as many values, with all of these among
            them, are these.
    """
    if len(one) != len(other):
        return False
    if not unique:
        return sorted(one.to_pylist()) == sorted(other.to_pylist())
    found = pc.is_in(one, value_set=other.combine_chunks())
    return bool(pc.all(found, min_count=0).as_py())


def _table(storage: Storage) -> Table:
    return Table(storage, json.loads(storage.read(MANIFEST)))


def _verify_versions(name: str, table: Table) -> list[str]:
    """Return what is wrong with the versions of a table that has grown."""
    parts = table.manifest["parts"]
    wrong = [
        f"{name}: version {one.number} is not what its parts say"
        for one in versions(table)
        if one.digest != digest_of_parts(parts[: one.parts])
        or one.rows != sum(part["rows"] for part in parts[: one.parts])
    ]
    if latest(table).parts != len(parts):
        wrong.append(f"{name}: its last version has {latest(table).parts} of {len(parts)} parts")
    return wrong


def _quarantined_ids(storage: Storage, table: Table) -> pa.ChunkedArray:
    if not storage.exists(MANIFEST):
        return pa.chunked_array([], _TEXT)
    # Other parts are of a version of the table that is being made.
    return _column(_table(storage), "id", _TEXT, set(table.part_names))
