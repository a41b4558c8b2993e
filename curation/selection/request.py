"""A selection with checked inputs: budget, pins, groups, strata, flags and quality of each row."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.selection.allocation import Strata
from echostill.curation.selection.decided.pins import Decided, decide
from echostill.curation.selection.group_limit import (
    automatic_limit,
    group_numbers,
    places_per_group,
)
from echostill.curation.selection.methods import METHODS
from echostill.curation.selection.pixels import STATISTICS, beyond_pixels, statistics_of
from echostill.curation.selection.settings import SelectionSettings, resolve_budget
from echostill.platform.errors import UsageError, nearest
from echostill.platform.tables.ids import first_ids, pool_rows

IDS_LIMIT = 2**31 - 1  # largest size of an Arrow string array, in bytes


@dataclass(frozen=True)
class Request:
    """A selection with checked inputs: errors in them are raised before clustering.

    Attributes:
        ids: N image ids, ascending.
        order: (N,) row of the scores that holds each id.
        budget: images to choose.
        decided: pins and exclusions.
        group_ids: (N,) group of each image.
        strata: values of the column that the budget is balanced by.
        quality: (N,) float32 gradient score, or what of its rank the pixels do not explain.
        max_per_group: images that one group may have; None for any number.
        flagged: (N,) bool, rows that the method chooses last.
    """

    ids: pa.Array
    order: np.ndarray
    budget: int
    decided: Decided
    group_ids: pa.Array
    strata: Strata
    quality: np.ndarray
    max_per_group: int | None
    flagged: np.ndarray


def prepare_request(
    scores: pa.Table,
    groups: pa.Table,
    settings: SelectionSettings,
    excluded: pa.Table | None = None,
    pinned: pa.Table | None = None,
) -> Request:
    """Check the inputs of a selection; arguments and errors are those of :func:`select_coreset`."""
    ids, order = sorted_ids(scores)
    budget = resolve_budget(settings.budget, len(ids))
    decided = decide(ids, excluded, pinned)
    decided.check(budget)
    row = pa.array(pool_rows(ids, groups["image_id"].cast(pa.string())))
    group_ids, strata = _of_pool(row, groups, settings.balance)
    flagged = _flagged(row, groups, settings)
    limit = _group_limit(settings, group_ids, budget, decided, flagged)
    quality = _quality(scores, order, ids, settings.penalty)
    if settings.rank_by == "beyond-pixels":
        quality = beyond_pixels(quality, _statistics(row, groups))
    return Request(ids, order, budget, decided, group_ids, strata, quality, limit, flagged)


def _flagged(row: pa.Array, groups: pa.Table, settings: SelectionSettings) -> np.ndarray:
    """Find the rows that the method chooses last, (N,) bool; a missing column flags none."""
    flagged = np.zeros(len(row), dtype=bool)
    for name in settings.flags_last if METHODS[settings.method].flags else ():
        if name in groups.column_names:
            flags = pc.fill_null(groups[name], False).combine_chunks().take(row)
            flagged |= flags.to_numpy(zero_copy_only=False)
    return flagged


def _group_limit(
    settings: SelectionSettings,
    group_ids: pa.Array,
    budget: int,
    decided: Decided,
    flagged: np.ndarray,
) -> int | None:
    limit = settings.max_per_group
    if limit is None:
        return None
    if limit != "auto":
        places_per_group(group_ids, limit, budget, decided.excluded, decided.pinned)
        return limit
    if not METHODS[settings.method].group_limit:
        return None
    # As if the flagged were not there, where the others suffice.
    out = decided.excluded | (flagged & ~decided.pinned)
    out = out if int((~out).sum()) >= budget else decided.excluded
    return automatic_limit(group_numbers(group_ids), budget, out, decided.pinned)


def sorted_ids(scores: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """Sort the ids of some scores.

    Returns:
        N ids, ascending, and (N,) int64 their rows.

    Raises:
        UsageError: No rows, ids that occur twice, or more ids than fit one array.
    """
    if scores.num_rows == 0:
        raise UsageError("the scores have no rows: nothing to select. Run `echostill score` first.")
    chunked = scores["image_id"].cast(pa.string())
    if chunked.nbytes > IDS_LIMIT:
        raise UsageError(
            f"{scores.num_rows} image ids take {chunked.nbytes} bytes; one selection supports at "
            f"most {IDS_LIMIT}. Select from parts of the pool."
        )
    column = chunked.combine_chunks()
    order = pc.sort_indices(column)
    ids = column.take(order)
    twice = np.flatnonzero(pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False))
    if len(twice):
        raise UsageError(
            f"{len(twice)} image ids occur twice in the scores: {first_ids(ids, twice)}. Each id "
            "may occur once."
        )
    return ids, order.to_numpy().astype(np.int64)


def _of_pool(row: pa.Array, groups: pa.Table, balance: str | None) -> tuple[pa.Array, Strata]:
    """Find each row's group, and its value of the column that balances."""
    group_ids = groups["group_id"].cast(pa.string()).combine_chunks().take(row)
    if balance is None:
        return group_ids, Strata(None, [""], np.zeros(len(row), dtype=np.int64))
    if balance not in groups.column_names:
        raise UsageError(
            f"the pool has no column '{balance}' to balance by."
            f"{nearest(balance, groups.column_names)}"
        )
    if pa.types.is_nested(groups[balance].type) or pa.types.is_large_binary(groups[balance].type):
        raise UsageError(
            f"the pool's column '{balance}' has no values to balance by: use another column."
        )
    texts = pc.fill_null(groups[balance].cast(pa.string()), "").combine_chunks().take(row)
    encoded = pc.dictionary_encode(texts)
    names = encoded.dictionary.to_pylist()
    ranked = np.argsort(np.argsort(np.array(names)))  # independent of the order of the rows
    return group_ids, Strata(
        balance, sorted(names), ranked[encoded.indices.to_numpy()].astype(np.int64)
    )


def _quality(scores: pa.Table, order: np.ndarray, ids: pa.Array, penalty: float) -> np.ndarray:
    """Mean gradient minus penalty times its spread, (N,) float32 as the table holds it."""
    mean = scores["gradient_mean"].to_numpy().astype(np.float64)[order]
    spread = scores["gradient_std"].to_numpy().astype(np.float64)[order]
    broken = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(spread)))
    if len(broken):
        raise UsageError(
            f"{len(broken)} of {len(ids)} gradients are missing or not finite: "
            f"{first_ids(ids, broken)}. Score these images again or leave them out of the pool."
        )
    quality: np.ndarray = (mean - penalty * spread).astype(np.float32)
    return quality


def _statistics(row: pa.Array, groups: pa.Table) -> np.ndarray:
    """Statistics of each row's pixels, (N, S) float64."""
    missing = [name for name in STATISTICS if name not in groups.column_names]
    if missing:
        raise UsageError(
            f"rank_by 'beyond-pixels' needs the columns {', '.join(missing)}, which this pool does "
            "not have: an earlier version made it. Ingest it again, or use rank_by=gradient."
        )
    return statistics_of(groups, row)
