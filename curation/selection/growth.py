"""A coreset that grows: all members of an earlier one stay, and the rest of the budget is chosen.

Every method can do this. Methods that compare images (coverage, k-center, herding,
facility-location, d2) begin with the members as if they had chosen them; the others count them in
the quotas of their clusters. What a fresh selection would have chosen is computed beside it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.selection.features import FeatureRows
from echostill.platform.errors import UsageError
from echostill.platform.seeding import stream
from echostill.platform.tables.store import Store, selected_ids
from echostill.platform.tables.table import MANIFEST, Table

NAMED = 3  # images that a message names
SAMPLED = 4096  # images whose nearest chosen one is looked for
_BLOCK = 65_536  # chosen images that are compared at once


@dataclass(frozen=True)
class Members:
    """Members of a coreset that is extended.

    Attributes:
        name: Of the coreset.
        digest: Of its table.
        ids: Its chosen images, sorted.
    """

    name: str
    digest: str
    ids: tuple[str, ...]

    @classmethod
    def of(cls, store: Store, name: str, new_name: str, budget: int) -> "Members":
        """Read the members of a coreset.

        Raises:
            UsageError: There is none, the new one has its name, or the budget is smaller.
        """
        if name == new_name:
            raise UsageError(
                f"grow: coreset '{name}' stays as it is: give the new one another name (name=...)."
            )
        coreset = store.open_coreset(name)
        ids = selected_ids(coreset)
        if budget < len(ids):
            raise UsageError(
                f"grow: coreset '{name}' has {len(ids)} images, and all of them stay: budget "
                f"{budget} is smaller."
            )
        return cls(name, coreset.digest, ids)

    @property
    def table(self) -> pa.Table:
        """Columns image_id and reason, as of pinned images."""
        reason = f"a member of coreset '{self.name}', which is extended"
        return pa.table({"image_id": self.ids, "reason": [reason] * len(self.ids)})

    def settle(self, excluded: pa.Table | None, duplicates: pa.Table | None) -> pa.Table | None:
        """Return the exclusions with which the members can stay.

        Of copies of each other the members stay and the others are excluded, whichever is better.

        Args:
            excluded: Columns image_id and reason.
            duplicates: Copies in the pool; None where none were looked for.

        Raises:
            UsageError: Members are excluded for another reason.
        """
        own = pa.array(self.ids, pa.string())
        if duplicates is not None:
            excluded = self._without_copies(excluded, duplicates, own)
        if excluded is None:
            return None
        out = excluded.filter(pc.is_in(excluded["image_id"], value_set=own))
        if out.num_rows:
            named = "; ".join(
                f"{row['image_id']} ({row['reason']})" for row in out.slice(0, NAMED).to_pylist()
            )
            more = "; ..." if out.num_rows > NAMED else ""
            raise UsageError(
                f"grow: {pc.count_distinct(out['image_id']).as_py()} images of coreset "
                f"'{self.name}' are excluded now: {named}{more}. All members of a coreset stay "
                "when it grows: select anew, or take these out of what is excluded."
            )
        return excluded if excluded.num_rows else None

    def _without_copies(
        self, excluded: pa.Table | None, duplicates: pa.Table, own: pa.Array
    ) -> pa.Table:
        mine = pc.is_in(duplicates["image_id"], value_set=own)
        member_rows = duplicates.filter(mine)
        first = member_rows.group_by("duplicate_group").aggregate([("image_id", "min")])
        place = pc.index_in(
            duplicates["duplicate_group"], value_set=first["duplicate_group"].combine_chunks()
        )
        others = pc.and_(pc.and_(place.is_valid(), duplicates["kept"]), pc.invert(mine))
        member = first["image_id_min"].take(place.filter(others))
        reason = pc.binary_join_element_wise(
            "copy of ", member, f", a member of coreset '{self.name}', which stays", ""
        )
        added = pa.table(
            {"image_id": duplicates["image_id"].filter(others), "reason": reason}
        ).cast(pa.schema([("image_id", pa.string()), ("reason", pa.string())]))
        if excluded is None:
            return added
        dropped = set(_pairs(member_rows))
        stays = [row not in dropped for row in _pairs(excluded)]
        kept = excluded.filter(pa.array(stays, pa.bool_()))
        joined = pa.concat_tables([kept.cast(added.schema), added])
        return joined.sort_by([("image_id", "ascending"), ("reason", "ascending")])


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    ids, reasons = table["image_id"].to_pylist(), table["reason"].to_pylist()
    return list(zip(ids, reasons, strict=True))


def read_duplicates(store: Store, wanted: bool) -> pa.Table | None:
    """Read the copies in the pool, where a selection leaves them out."""
    storage = store.duplicates()
    return Table.open(storage, "duplicates").read() if wanted and storage.exists(MANIFEST) else None


def distance_from_fresh(
    grown: pa.Table, fresh: pa.Table, members: Members, features: FeatureRows, seed: int
) -> dict[str, Any]:
    """Say how far an extended coreset is from one that is chosen anew.

    Args:
        grown: The extended coreset, rows sorted by id.
        fresh: The one chosen anew, the same rows.
        members: What was extended.
        features: Features of these rows.
        seed: Of the sample of images whose coverage is measured.

    Returns:
        ``from``, ``kept``, ``added``, ``shared`` (images in both), and ``coverage`` and
        ``fresh_coverage``: mean cosine of an image of the pool and the chosen one nearest to it.
    """
    own, other = (
        table["selected"].to_numpy(zero_copy_only=False).astype(bool) for table in (grown, fresh)
    )
    rows = len(own)
    sample = np.arange(rows)
    if rows > SAMPLED:
        sample = np.sort(stream(seed, "coverage sample").permutation(rows)[:SAMPLED])
    looked_at = _unit(features.take(sample))
    return {
        "from": members.name,
        "kept": len(members.ids),
        "added": int(own.sum()) - len(members.ids),
        "shared": int((own & other).sum()),
        "coverage": _coverage(looked_at, features, np.flatnonzero(own)),
        "fresh_coverage": _coverage(looked_at, features, np.flatnonzero(other)),
    }


def describe_growth(found: dict[str, Any]) -> str:
    """Describe :func:`distance_from_fresh` in a sentence."""
    selected = found["kept"] + found["added"]
    return (
        f"all {found['kept']} images of coreset '{found['from']}' and {found['added']} more; a "
        f"selection made anew would share {found['shared']} of these {selected}, and its chosen "
        f"images cover the pool with a mean cosine of {found['fresh_coverage']:.4f}, these with "
        f"{found['coverage']:.4f}"
    )


def _coverage(looked_at: np.ndarray, features: FeatureRows, chosen: np.ndarray) -> float:
    nearest = np.full(len(looked_at), -1.0, dtype=np.float32)
    for start in range(0, len(chosen), _BLOCK):
        block = _unit(features.take(chosen[start : start + _BLOCK]))
        np.maximum(nearest, (looked_at @ block.T).max(axis=1), out=nearest)
    return round(float(nearest.mean(dtype=np.float64)), 6)


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: np.ndarray = rows / np.maximum(length, 1e-12)
    return unit
