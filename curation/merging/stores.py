"""The stores of a merge: opened, and refused where their pools cannot be one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from echostill.curation.deidentification.pseudonyms import key_check
from echostill.curation.ingestion.growth.growing import LISTING_KEYS
from echostill.curation.ingestion.growth.known import GROWTH
from echostill.curation.ingestion.keys import KEY_SHARES
from echostill.platform.errors import UsageError
from echostill.platform.names import check_name
from echostill.platform.shards.records import Record, read_records
from echostill.platform.tables.fingerprint import Fingerprint, claimed, difference
from echostill.platform.tables.lease import at_work
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import Table
from echostill.platform.withdrawal.tombstones import Tombstones, read_tombstones

# Keys of an ingest that say what a hospital's files are, and not how their pixels were treated.
_OF_FILES = {
    *LISTING_KEYS,
    *("group_pattern", "organ", "device", "frames", "max_pixels", "max_frames", "max_bytes"),
    *("files_per_shard", "bytes_per_shard", "key_file", "seed"),
}


@dataclass(frozen=True)
class SourceStore:
    """A store that is merged. It is only read.

    Attributes:
        name: In the merge.
        store: The store.
        pool: Its pool.
        fingerprint: Of the pool.
        records: Of the pool's shards, in order.
        tombstones: Of what was withdrawn from it.
    """

    name: str
    store: Store
    pool: Table
    fingerprint: Fingerprint
    records: Sequence[Record]
    tombstones: Tombstones

    @property
    def key_check(self) -> str:
        """What tells the key of its identifiers from others; empty where that was not kept."""
        return self.fingerprint.inputs.get("key check", "")

    @property
    def has_own_key(self) -> bool:
        """Whether the user gave that key. Otherwise it came from the files."""
        return not self.store.pool().exists(KEY_SHARES)

    def joins(self, other: "SourceStore") -> bool:
        """Whether equal groups of two stores are one, since both are under one key."""
        return self is other or (bool(self.key_check) and self.key_check == other.key_check)


def open_stores(target: Store, stores: Mapping[str, str], key: bytes | None) -> list[SourceStore]:
    """Open the stores of a merge, by their names in order.

    Args:
        target: The merged store.
        stores: Folders or URIs by name.
        key: The user's key.

    Raises:
        UsageError: They cannot be merged; says which, and why.
    """
    if len(stores) < 2:
        raise UsageError(f"a merge takes two stores or more, not {len(stores)}: --from NAME=STORE.")
    places = {_place(target): "the merged store"}
    found = []
    for name in sorted(stores):
        store = Store(stores[name])
        place = _place(store)
        for other, what in places.items():
            if _inside(place, other) or _inside(other, place):
                raise UsageError(
                    f"refused: '{name}' ('{store.root}') and {what} ('{other}') are one store, or "
                    "one lies in the other: a merge writes a store of its own."
                )
        places[place] = f"'{name}'"
        found.append(_open(check_name(name), store))
    for later in found[1:]:
        _check_alike(found[0], later)
    _check_key(found, key)
    return found


def check_unchanged(stores: Sequence[SourceStore]) -> None:
    """Refuse to go on where a store is no longer what was read.

    Raises:
        UsageError: A pool has changed, or a job works on its store.
    """
    for one in stores:
        _check_idle(one.name, one.store)
        if Table.open(one.store.pool(), "ingest").digest != one.pool.digest:
            raise UsageError(f"the pool of '{one.name}' changed during the merge: merge again.")


def _open(name: str, store: Store) -> SourceStore:
    if not store.storage.exists():
        raise UsageError(f"there is no store '{store.root}' ('{name}').")
    _check_idle(name, store)
    pool = Table.open(store.pool(), "ingest")
    parts = len(pool.manifest["parts"])
    records = sorted(read_records(store.pool()), key=lambda record: int(record["shard"]))
    if len(records) != parts or len(store.pool().list(GROWTH)) > len(
        pool.manifest.get("versions", [])
    ):
        raise UsageError(
            f"the pool of '{name}' ('{store.root}') is not finished, or is growing: it has "
            f"{len(records)} shards and declares {parts}. Finish it with `echostill ingest`."
        )
    tombstones = read_tombstones(store.storage)
    return SourceStore(name, store, pool, claimed(store.pool()), records, tombstones)


def _check_idle(name: str, store: Store) -> None:
    holder = at_work(store.storage)
    if holder is not None:
        raise UsageError(
            f"refused: the store of '{name}' ('{store.root}') is in use by {holder.described}. "
            "Merge when it has ended."
        )


def _check_alike(first: SourceStore, other: SourceStore) -> None:
    """Refuse stores whose images were read or de-identified in another way."""

    def comparable(one: SourceStore) -> dict[str, Any]:
        values = one.fingerprint.configuration
        kept = {key: value for key, value in values.items() if key not in _OF_FILES}
        return replace(one.fingerprint, configuration=kept, code="", inputs={}).as_dict()

    changes = difference(comparable(first), comparable(other))
    columns = first.pool.manifest["schema"], other.pool.manifest["schema"]
    if columns[0] != columns[1]:
        changes.append("other columns")
    if changes:
        raise UsageError(
            f"refused: '{first.name}' and '{other.name}' were read differently: "
            f"{'; '.join(changes)}. The images of one pool are read alike: ingest the files of one "
            "of them again with the settings of the other."
        )


def _check_key(stores: Sequence[SourceStore], key: bytes | None) -> None:
    """Refuse to let groups that one store has withdrawn come back from another, unrecognised."""
    for one in stores:
        gone = any(each.groups for each in (one.tombstones, *one.tombstones.others))
        others = [other.name for other in stores if other is not one and one.joins(other)]
        if gone and others and one.has_own_key and (key is None or key_check(key) != one.key_check):
            raise UsageError(
                f"groups were withdrawn from '{one.name}', and their images in "
                f"{', '.join(others)} are recognised only with the key of both: give it with "
                f"--key-file or ECHOSTILL_KEY; expected one with the check {one.key_check}."
            )


def _place(store: Store) -> str:
    """Return where a store is, whatever path or options lead there."""
    root = store.storage.root
    return os.path.realpath(root) if store.storage.is_local else root


def _inside(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other.rstrip('/')}/")
