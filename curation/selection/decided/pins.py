"""Pinned and excluded rows: pinned images are always chosen, excluded ones never.

An excluded row keeps its cluster and its ranks, but quotas are computed as if it did not exist. A
pinned row counts towards the budget and towards its cluster's quota, which is at least the number
of its pins.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.platform.errors import UsageError
from echostill.platform.tables.ids import first_ids


@dataclass(frozen=True)
class Decided:
    """Which of N rows are pinned or excluded.

    Attributes:
        excluded: (N,) bool.
        pinned: (N,) bool.
        texts: (N,) strings, the reasons; empty for other rows and if no reason is given.
    """

    excluded: np.ndarray
    pinned: np.ndarray
    texts: pa.Array

    @property
    def eligible(self) -> np.ndarray:
        """(N,) bool: rows that may be chosen."""
        return ~self.excluded

    def check(self, budget: int) -> None:
        """Check that the budget is at least the pins and at most the rows not excluded.

        Raises:
            UsageError: It is not; the message gives the numbers.
        """
        pins, left = int(self.pinned.sum()), int(self.eligible.sum())
        rows, out = len(self.pinned), int(self.excluded.sum())
        if budget < pins:
            raise UsageError(
                f"budget {budget} is smaller than the {pins} pinned images: raise the budget or "
                "pin fewer."
            )
        if budget > left:
            raise UsageError(
                f"budget {budget} is too large: of {rows} scored images {out} are excluded, which "
                f"leaves {left}. Lower the budget or exclude fewer."
            )


def decide(ids: pa.Array, excluded: pa.Table | None, pinned: pa.Table | None) -> Decided:
    """Find the excluded and the pinned rows.

    Args:
        ids: (N,) image ids, unique.
        excluded: columns image_id and, optionally, reason. Images that are not in ``ids`` (for
            example not scored) are ignored; several reasons of one image are joined.
        pinned: the same columns, but every image must be in ``ids``.

    Raises:
        UsageError: An image is pinned and excluded, or pinned and not scored; or a table has no
            column image_id. Names the first few.
    """
    out, out_texts = _find(ids, excluded, "excluded")
    kept, kept_texts = _find(ids, pinned, "pinned")
    both = np.flatnonzero(out & kept)
    if len(both):
        raise UsageError(
            f"{len(both)} images are both pinned and excluded: {first_ids(ids, both)}. Remove them "
            "from one of the two."
        )
    return Decided(out, kept, pc.if_else(pa.array(kept), kept_texts, out_texts))


def _find(ids: pa.Array, table: pa.Table | None, what: str) -> tuple[np.ndarray, pa.Array]:
    empty = pa.repeat(pa.scalar(""), len(ids))
    if table is None or table.num_rows == 0:
        return np.zeros(len(ids), dtype=bool), empty
    if "image_id" not in table.column_names:
        raise UsageError(
            f"the {what} images need a column 'image_id'; there are: "
            f"{', '.join(table.column_names)}."
        )
    known = _one_reason_each(table)
    row = pc.index_in(ids, value_set=known["image_id"].combine_chunks())
    if what == "pinned":
        lost = pc.invert(pc.is_in(known["image_id"], value_set=ids))
        missing = known["image_id"].filter(lost).combine_chunks()
        if len(missing):
            raise UsageError(
                f"{len(missing)} pinned images are not scored: "
                f"{first_ids(missing, np.arange(len(missing)))}. Only scored images can be chosen; "
                "check the quarantine, or remove them from the pins."
            )
    texts = pc.fill_null(known["reason"].combine_chunks().take(row), "")
    return pc.is_valid(row).to_numpy(zero_copy_only=False), texts


def _one_reason_each(table: pa.Table) -> pa.Table:
    """Reduce the table to one row per image, sorted; several reasons are joined by '; '."""
    ids = table["image_id"].cast(pa.string())
    reason = pa.chunked_array([pa.repeat(pa.scalar(""), table.num_rows)])
    if "reason" in table.column_names:
        reason = pc.fill_null(table["reason"].cast(pa.string()), "")
    whole = pa.table({"image_id": ids, "reason": reason}).filter(pc.is_valid(ids))
    whole = whole.sort_by([("image_id", "ascending"), ("reason", "ascending")])
    again = pc.equal(whole["image_id"][1:], whole["image_id"][:-1])
    if not pc.any(again).as_py():
        return whole
    # Rows of one image are adjacent now; the loop visits only images that occur twice.
    several = pc.is_in(whole["image_id"], value_set=whole["image_id"][1:].filter(again).unique())
    rows = [
        {
            "image_id": name,
            "reason": "; ".join(dict.fromkeys(r["reason"] for r in group if r["reason"])),
        }
        for name, group in groupby(
            whole.filter(several).to_pylist(), key=lambda row: row["image_id"]
        )
    ]
    joined = pa.Table.from_pylist(rows, schema=whole.schema)
    return pa.concat_tables([whole.filter(pc.invert(several)), joined])
