"""A table's folder: nothing but Parquet parts in it, and what is known of them beside it.

Any reader of Parquet can be given the folder as it is. pandas and pyarrow would skip names that
begin with ``_`` or ``.``, Polars does not; so manifest, fingerprint, configuration and the records
of shards lie in another folder of the store::

    pool/part-00000.parquet             records/pool/manifest.json
    coresets/NAME/part-00000.parquet    records/coresets/NAME/manifest.json

Tables that were written before this was so have everything in one folder, and keep it. Who deletes
the folder of a table deletes the table: records that name parts of it count no longer.
"""

import json
from collections.abc import Callable
from functools import cached_property

from echostill.platform.tables.fingerprint import FINGERPRINT
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import MANIFEST

RECORDS = "records"  # folder of the store
PART = ".parquet"  # how the names of parts end
DONE = "done"  # records of finished shards, each with its part


class TableFolder(Storage):
    """The two folders of a table, as one: each name has its place in one of them."""

    def __init__(self, store: str, name: str) -> None:
        """Open a table of a store; it need not exist yet.

        Args:
            store: Root of the store, with its options.
            name: The table, such as ``coresets/default``.
        """
        self._store, self._name = store, name
        whole = Storage(store)
        self._parts, self._beside = whole.at(name), whole.at(f"{RECORDS}/{name}")
        super().__init__(self._parts.uri)

    def __reduce__(self) -> tuple[Callable[..., Storage], tuple[str, ...]]:
        return TableFolder, (self._store, self._name)

    @cached_property
    def _records(self) -> Storage:
        """Where everything but the parts is."""
        # A table with one of these in its own folder was written before there were records.
        before = any(self._parts.exists(name) for name in (MANIFEST, FINGERPRINT))
        return self._parts if before else self._beside

    @cached_property
    def _deleted(self) -> bool:
        """Whether somebody deleted the parts, and left records that name some."""
        if self._parts.exists():
            return False
        if not self._beside.exists(MANIFEST):
            return bool(self._beside.list(DONE))
        try:
            manifest = json.loads(self._beside.read(MANIFEST))
        except ValueError:  # whoever reads it says so
            return False
        return isinstance(manifest, dict) and bool(manifest.get("parts"))

    def locate(self, name: str) -> str:
        """Return the full path or URI of ``name``, for messages and for other libraries."""
        return self._place(name).locate(name)

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder of that name exists; without one, whether anything."""
        if self._deleted:
            return False
        return self._place(name).exists(name) or (not name and self._records.exists())

    def sizes(self, name: str = "", *, recursive: bool = True) -> dict[str, int]:
        """Return the sizes in bytes of the files in a folder, by names as in :meth:`list`."""
        folders = () if self._deleted else (self._parts, self._records)
        found = [folder.sizes(name, recursive=recursive) for folder in folders]
        return {name: size for sizes in found for name, size in sizes.items()}

    def newest(self, name: str = "") -> str:
        """Return when the newest file in a folder was written, UTC; empty where that is unknown."""
        return max(folder.newest(name) for folder in (self._parts, self._records))

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None where there is no such file."""
        return None if self._deleted else super().size(name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically, making its folder where needed."""
        if self._deleted:
            self._beside.delete("")
            self._deleted = False
        super().write(name, data)

    def delete(self, name: str) -> None:
        """Delete a file or a folder, wherever it is; a missing one is fine."""
        for folder in (self._records, self._parts):
            folder.delete(name)

    def sweep(self) -> None:
        """Delete what killed writers left half-written; only while nobody writes here."""
        for folder in (self._records, self._parts):
            folder.sweep()

    def _full(self, name: str) -> str:
        return self._place(name).arrow_path(name)

    def _place(self, name: str) -> Storage:
        """Where a name belongs; the folder itself is the parts'."""
        return self._parts if not name or name.endswith(PART) else self._records
