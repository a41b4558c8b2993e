"""Proof that nothing of what was withdrawn is in a store: every table and text is searched."""

import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import decode_parquet
from echostill.platform.tables.table_folder import PART
from echostill.platform.withdrawal.state import FOLDER
from echostill.platform.withdrawal.tombstones import BYTES, CONTENT, FILE, ID, Tombstones

TEXTS = (".json", ".jsonl", ".txt", ".yaml", ".yml", ".csv", ".md", ".html")
_IDS = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_LONGEST = 200  # characters of a value that may be an id as a whole


def find_withdrawn(store: Store, tombstones: Tombstones) -> tuple[int, dict[str, str]]:
    """Search a store for ids, pixels and staged pictures of withdrawn images.

    Args:
        store: The store.
        tombstones: By which they are recognised.

    Returns:
        How many files were searched, and for those that hold something of one, what.
    """
    files, found = 0, {}
    for name in store.storage.list(recursive=True):
        if name.startswith(f"{FOLDER}/"):
            continue
        what = "its id" if _named(name, tombstones) else ""
        if name.endswith(PART):
            what = what or _in_table(store.storage.read(name), tombstones)
        elif name.endswith(TEXTS):
            text = store.storage.read(name).decode("utf-8", "replace")
            what = what or ("its id" if _named(text, tombstones) else "")
        files += 1
        if what:
            found[name] = what
    return files, found


def _named(text: str, tombstones: Tombstones) -> bool:
    return any(tombstones.found(ID, one) for one in set(_IDS.findall(text)))


def _in_table(data: bytes, tombstones: Tombstones) -> str:
    try:
        table = decode_parquet(data)
    except (pa.ArrowInvalid, OSError):  # which verifying the table says
        return ""
    for name in table.column_names:
        column = table[name]
        if name == "image" and (pa.types.is_large_binary(column.type)):
            if any(tombstones.found(BYTES, sha256(one)) for one in column.to_pylist() if one):
                return "its picture"
        elif name == "content_hash":
            if any(tombstones.found(CONTENT, one) for one in _texts(column)):
                return "its pixels"
        elif name == "name":
            if any(tombstones.found(FILE, one) for one in _texts(column)):
                return "its file"
        elif any(
            (len(one) <= _LONGEST and tombstones.found(ID, one)) or _named(one, tombstones)
            for one in _texts(column)
        ):
            return "its id"
    return ""


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    """Yield the distinct texts of a column, those in lists too."""
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        column, kind = pc.list_flatten(column), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from (one for one in pc.unique(column).to_pylist() if one)
