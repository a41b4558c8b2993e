"""Cells in which rows compete, their quotas, and the outcome of every row."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from echostill.curation.selection import reasons
from echostill.curation.selection.clustering import Clustering
from echostill.curation.selection.decided.pins import Decided
from echostill.curation.selection.group_limit import fill_within_group_limit
from echostill.curation.selection.methods import METHODS, Block, Pool
from echostill.curation.selection.methods.hierarchy import cluster_tree
from echostill.curation.selection.methods.ranks import trimmed
from echostill.curation.selection.quotas import share, tree_quotas
from echostill.curation.selection.ranking import ranks_within_clusters
from echostill.curation.selection.settings import SelectionSettings


@dataclass(frozen=True)
class Strata:
    """The values of the column that the budget is balanced by."""

    column: str | None
    names: list[str]
    number: np.ndarray  # (N,) index into names


@dataclass(frozen=True)
class Allocation:
    """The cell in which every row competes, and the quota of each cell.

    A cell is a cluster, or a cluster's images of one stratum.
    """

    cell: np.ndarray  # (N,)
    quotas: np.ndarray  # (cells,)
    priority: np.ndarray  # (N,) smaller is chosen first

    @classmethod
    def of(
        cls,
        pool: Pool,
        clustering: Clustering,
        strata: Strata,
        decided: Decided,
        settings: SelectionSettings,
        budget: int,
    ) -> "Allocation":
        """Divide the budget and order the rows."""
        method, eligible = METHODS[settings.method], decided.eligible
        key = strata.number.astype(np.int64) * clustering.count + pool.cluster
        keys, cell = np.unique(key, return_inverse=True)
        stratum_of, cluster_of = np.divmod(keys, clustering.count)
        sizes = np.bincount(cell[eligible], minlength=len(keys))
        pins = np.bincount(cell[decided.pinned], minlength=len(keys))
        count = len(strata.names)
        shares = share(
            np.bincount(stratum_of, sizes, count).astype(np.int64),
            budget,
            settings.balance_quota,
            np.bincount(stratum_of, pins, count).astype(np.int64),
        )
        priority = np.full(len(cell), np.inf)
        if method.by_row:
            rows = np.flatnonzero(eligible)
            priority[rows] = method.order(Block(pool, rows), budget, settings)
        if settings.inside_clusters:
            quotas = np.zeros(len(keys), dtype=np.int64)
            tree = _tree(clustering, settings)
            for stratum in range(count):
                own = np.flatnonzero(stratum_of == stratum)
                if tree is None:
                    quotas[own] = share(sizes[own], int(shares[stratum]), settings.rule, pins[own])
                    continue
                leaves = np.zeros((2, clustering.count), dtype=np.int64)
                leaves[:, cluster_of[own]] = sizes[own], pins[own]
                leaf_quotas = tree_quotas(leaves[0], tree, int(shares[stratum]), leaves[1])
                quotas[own] = leaf_quotas[cluster_of[own]]
            if not method.by_row:
                for number, rows in _members(cell, eligible):
                    block = Block(pool, rows)
                    priority[rows] = method.order(block, int(quotas[number]), settings)
            priority[decided.pinned] = -np.inf
        else:
            if not method.by_row:
                for stratum, rows in _members(strata.number, eligible):
                    block = Block(pool, rows)
                    priority[rows] = method.order(block, int(shares[stratum]), settings)
            priority[decided.pinned] = -np.inf
            # Quotas with which the best rows of the cells are the best rows of the whole stratum.
            quotas = np.zeros(len(keys), dtype=np.int64)
            for stratum, rows in _members(strata.number, eligible):
                first = rows[np.argsort(priority[rows], kind="stable")[: shares[stratum]]]
                quotas += np.bincount(cell[first], minlength=len(keys))
        return cls(cell, quotas, priority)


def outcomes(
    pool: Pool,
    plan: Allocation,
    group_ids: pa.Array,
    decided: Decided,
    settings: SelectionSettings,
    budget: int,
) -> np.ndarray:
    """Return the outcome of every row, (N,) as in ``reasons``."""
    cell, quotas, priority = plan.cell, plan.quotas, plan.priority
    if pool.group_limit is None:
        rank = ranks_within_clusters(cell, priority, np.arange(len(cell)))
        outcome = np.where(rank <= quotas[cell], reasons.WITHIN_QUOTA, reasons.OUTRANKED)
    else:
        outcome = fill_within_group_limit(
            priority,
            cell,
            quotas,
            group_ids,
            pool.group_limit,
            budget,
            decided.excluded,
            decided.pinned,
        )
    taken = outcome == reasons.WITHIN_QUOTA
    last = np.full(len(quotas), -np.inf)
    np.maximum.at(last, cell[taken], priority[taken])
    outranked = outcome == reasons.OUTRANKED
    if METHODS[settings.method].group_limit and pool.group_limit is not None:
        # The method itself passes over the rows of full groups, so that no quota turns them away.
        have = np.bincount(pool.group[taken | decided.pinned], minlength=int(pool.group.max()) + 1)
        full = have[pool.group] >= pool.group_limit
        outcome = np.where(outranked & full, reasons.HELD_BACK, outcome)
        outranked &= ~full
    outcome = np.where(outranked & (priority == last[cell]), reasons.TIED, outcome)
    if METHODS[settings.method].trims and settings.trim:
        outliers = trimmed(Block(pool, np.arange(len(cell))), settings)
        outcome = np.where(outranked & outliers, reasons.TRIMMED, outcome)
    outcome = np.where(outranked & (quotas[cell] == 0), reasons.NO_QUOTA, outcome)
    if METHODS[settings.method].flags:
        outcome = np.where(outranked & pool.flagged, reasons.FLAGGED, outcome)
    outcome = np.where(decided.pinned, reasons.PINNED, outcome)
    return np.where(decided.excluded, reasons.EXCLUDED, outcome)


def _members(number: np.ndarray, eligible: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each number with its eligible rows, ascending."""
    rows = np.flatnonzero(eligible)
    rows = rows[np.argsort(number[rows], kind="stable")]
    numbers, starts = np.unique(number[rows], return_index=True)
    yield from zip(numbers.tolist(), np.split(rows, starts[1:]), strict=True)


def _tree(clustering: Clustering, settings: SelectionSettings) -> list[np.ndarray] | None:
    if not METHODS[settings.method].tree:
        return None
    levels = settings.hierarchy.levels
    return cluster_tree(clustering.centroids, levels, settings.iterations, settings.seed)
