"""A table without what is withdrawn: its rows, and its names in the rows that stay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.platform.tables.table import Table
from echostill.platform.withdrawal.tombstones import Tombstones
from echostill.platform.withdrawal.traces import Traces

TEXTS = ("reason", "message")  # columns in which names may stand among words
LISTS = ("image_ids",)
# By these columns a row is withdrawn.
_ROWS = ("image_id", "id")
_COPIES = ("duplicate_group", "kept_id", "kept", "kind", "distance")
# What has to be read of a table to know what becomes of it.
COLUMNS = (*_ROWS, "name", "store", *TEXTS, *LISTS, *_COPIES)


@dataclass(frozen=True)
class Cut:
    """What a table loses.

    Attributes:
        traces: Of what is withdrawn.
        links: For an image that others are copies of: who stands for them now, and the smallest id
            of those that are left.
        listing: Whether it is the list of files, whose rows are counted elsewhere: they stay, with
            digests instead of names.
        tombstones: For these digests.
    """

    traces: Traces
    links: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    listing: bool = False
    tombstones: Tombstones = field(default_factory=Tombstones)

    def keeps(self, table: pa.Table) -> np.ndarray:
        """Return which rows stay, (N,) bool."""
        stays = np.ones(table.num_rows, dtype=bool)
        for column in _ROWS if not self.listing else ():
            if column in table.column_names:
                gone = pa.array(sorted(self.traces.ids), table.schema.field(column).type)
                found = pc.is_in(table[column], value_set=gone)
                stays &= ~found.to_numpy().astype(bool)
        if "store" in table.column_names and "kept_id" in table.column_names:
            # Origins of a merged pool: a copy that was left out goes with the one that stayed.
            gone = pa.array(sorted(self.traces.ids), pa.string())
            stays &= ~pc.is_in(table["kept_id"], value_set=gone).to_numpy().astype(bool)
        if "duplicate_group" in table.column_names and self.links:
            left = {group for group, (kept, _) in self.links.items() if kept}
            groups = table["duplicate_group"].to_pylist()
            stays &= np.array([g not in self.links or g in left for g in groups], dtype=bool)
        return stays

    def apply(self, table: pa.Table, stays: np.ndarray) -> pa.Table:
        """Return the rows that stay, without the names of the others; itself where all is well."""
        kept = table if stays.all() else table.filter(pa.array(stays))
        if "duplicate_group" in kept.column_names and self.links:
            kept = self._linked(kept)
        if self.listing:
            return _replaced(kept, "name", self._without_name)
        for name in TEXTS:
            if name in kept.column_names:
                kept = _replaced(kept, name, self.traces.mend)
        for name in LISTS:
            if name in kept.column_names:
                kept = _replaced(kept, name, self._without_ids)
        return kept

    def _without_name(self, name: str) -> str:
        return self.tombstones.name(name) if name in self.traces.files else name

    def _without_ids(self, ids: list[str]) -> list[str]:
        left = [one for one in ids if one not in self.traces.ids]
        return ids if len(left) == len(ids) else left

    def _linked(self, table: pa.Table) -> pa.Table:
        """Let another copy stand for those whose kept image is withdrawn."""
        rows = table.to_pylist()
        changed = False
        for row in rows:
            if row["duplicate_group"] not in self.links:
                continue
            kept, smallest = self.links[row["duplicate_group"]]
            row["duplicate_group"], changed = smallest, True
            if row["image_id"] == kept and not row["kept"]:
                row |= {"kept": True, "kept_id": kept, "kind": "", "distance": 0.0}
                row["reason"] = "kept: the image that stood for it and its copies was withdrawn"
            elif row["kept_id"] in self.traces.ids:
                row["kept_id"] = kept
                row["reason"] = f"copy of {kept}, which is kept; compared with one since withdrawn"
        return pa.Table.from_pylist(rows, table.schema) if changed else table


def _replaced(table: pa.Table, name: str, call: Callable[..., object]) -> pa.Table:
    before = table[name].to_pylist()
    known: dict[str, object] = {}
    after = []
    for value in before:
        if value is None or not isinstance(value, str):
            after.append(None if value is None else call(value))
            continue
        if value not in known:
            known[value] = call(value)
        after.append(known[value])
    if all(one is other for one, other in zip(before, after, strict=True)):
        return table
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), pa.array(after, table[name].type))


def link_copies(duplicates: Table, traces: Traces) -> dict[str, tuple[str, str]]:
    """Find who stands for the copies of withdrawn images.

    Args:
        duplicates: The table of copies.
        traces: Of what is withdrawn.

    Returns:
        By the group's name, for groups that lose an image: the image that is kept now and the
        smallest id that is left; both empty where fewer than two are left.
    """
    columns = ["image_id", "duplicate_group", "kept"]
    groups: dict[str, list[tuple[str, bool]]] = {}
    for row in duplicates.read(columns).to_pylist():
        groups.setdefault(row["duplicate_group"], []).append((row["image_id"], row["kept"]))
    found = {}
    for name, members in groups.items():
        left = sorted(member for member in members if member[0] not in traces.ids)
        if len(left) == len(members) and name not in traces.ids:
            continue
        if len(left) < 2:
            found[name] = ("", "")
            continue
        kept = [image for image, stays in left if stays]
        found[name] = ((kept or [left[0][0]])[0], left[0][0])
    return found
