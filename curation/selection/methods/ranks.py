"""Methods that sort: by dual rank, by distance to the centroid, by gradient."""

from typing import Protocol

import numpy as np

from echostill.curation.selection.methods.block import Block


class HasTrim(Protocol):
    """Settings that say which share of a cluster counts as outliers."""

    @property
    def trim(self) -> float:
        """The share, by gradient."""
        ...


def dual_rank(block: Block, count: int, settings: HasTrim) -> np.ndarray:
    """Order by the dual rank (typical and informative); trimmed outliers come last."""
    return block.dual_rank + 2.0 * trimmed(block, settings)


def trimmed(block: Block, settings: HasTrim) -> np.ndarray:
    """Return which rows are gradient outliers of their cluster, (n,) bool.

    Corrupt images have very large gradients too: the first ``trim`` share of each cluster by
    gradient (rounded down) is chosen only if no other images are left.
    """
    return block.gradient_rank <= np.floor(settings.trim * block.size)


def near(block: Block, count: int, settings: object) -> np.ndarray:
    """Order by distance to the centroid, nearest first."""
    return block.distance.astype(np.float64)


def far(block: Block, count: int, settings: object) -> np.ndarray:
    """Order by distance to the centroid, farthest first."""
    return -block.distance.astype(np.float64)


def gradient(block: Block, count: int, settings: object) -> np.ndarray:
    """Order by gradient score, largest first (self-supervised GraNd, Paul et al. 2021)."""
    return -block.quality.astype(np.float64)


def moderate(block: Block, count: int, settings: object) -> np.ndarray:
    """Order by closeness to the median distance of the cluster (moderate coreset, Xia et al. 2023).

    The source takes medians per class; without labels, clusters replace classes.
    """
    cluster, distance = block.cluster, block.distance.astype(np.float64)
    order = np.lexsort((distance, cluster))
    in_order = cluster[order]
    starts = np.flatnonzero(np.r_[True, in_order[1:] != in_order[:-1]]) if len(order) else order
    lengths = np.diff(np.r_[starts, len(order)])
    lower = distance[order[starts + (lengths - 1) // 2]]
    upper = distance[order[starts + lengths // 2]]
    priority = np.empty(len(order), dtype=np.float64)
    priority[order] = np.abs(distance[order] - np.repeat((lower + upper) / 2, lengths))
    return priority
