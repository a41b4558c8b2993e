"""Image ids: the rows that hold them, and a few of them named in a message."""

import numpy as np
import pyarrow as pa

from echostill.platform.errors import UsageError


def rows_of_ids(
    wanted: pa.Array | pa.ChunkedArray,
    known: pa.Array | pa.ChunkedArray,
    *,
    what: str,
    where: str,
    advice: str,
) -> np.ndarray:
    """Find the row that holds each id.

    Args:
        wanted: N ids.
        known: The ids of the rows, of any text type; of equal ones the first row is found.
        what: What the wanted ids are, for the error: "scored images".
        where: What the rows are: "the pool".
        advice: Why an id may be missing, and what to do.

    Returns:
        (N,) int64.

    Raises:
        UsageError: Ids that no row holds; names the first few.
    """
    import pyarrow.compute as pc

    ids, among = _joined(wanted), _joined(known)
    kind = pa.large_string() if pa.large_string() in (ids.type, among.type) else among.type
    row = pc.index_in(ids.cast(kind), value_set=among.cast(kind))
    if row.null_count:
        lost = np.flatnonzero(pc.is_null(row).to_numpy(zero_copy_only=False))
        raise UsageError(f"{len(lost)} {what} are not in {where}: {first_ids(ids, lost)}. {advice}")
    numbers: np.ndarray = row.to_numpy().astype(np.int64)
    return numbers


def pool_rows(scored: pa.Array | pa.ChunkedArray, pool: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Find the pool's row of each scored image; arguments and errors as of :func:`rows_of_ids`."""
    return rows_of_ids(
        scored,
        pool,
        what="scored images",
        where="the pool",
        advice="The scores belong to another pool; run `echostill score` again.",
    )


def first_ids(ids: pa.Array, rows: np.ndarray, limit: int = 3) -> str:
    """Name the first few of the given rows by their ids, for an error message."""
    shown = ids.take(pa.array(rows[:limit])).to_pylist()
    return ", ".join(shown) + (", ..." if len(rows) > limit else "")


def _joined(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(combined, pa.ChunkedArray):  # more than one array of short offsets holds
        return pa.concat_arrays(combined.cast(pa.large_string()).chunks)
    return combined
