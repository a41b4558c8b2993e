"""Ranks inside clusters, and the dual rank that fuses two of them."""

from typing import Literal

import numpy as np

Fusion = Literal["sum", "product", "max", "two-stage"]


def ranks_within_clusters(
    cluster: np.ndarray, value: np.ndarray, ids: np.ndarray, descending: bool = False
) -> np.ndarray:
    """Rank the rows of each cluster by a value; ties are broken by id.

    Args:
        cluster: (N,) integers.
        value: (N,) numbers, not NaN.
        ids: (N,) sortable values: image ids, or their positions in sorted order.
        descending: whether the largest value gets rank 1.

    Returns:
        (N,) int32, 1..size of the cluster.
    """
    order = np.lexsort((ids, -value if descending else value, cluster))
    in_order = cluster[order]
    starts = np.flatnonzero(np.r_[True, in_order[1:] != in_order[:-1]]) if len(order) else order
    lengths = np.diff(np.r_[starts, len(order)])
    ranks = np.empty(len(order), dtype=np.int32)
    ranks[order] = np.arange(len(order)) - np.repeat(starts, lengths) + 1
    return ranks


def dual_ranks(
    distance_rank: np.ndarray,
    gradient_rank: np.ndarray,
    size: np.ndarray,
    alpha: float,
    fusion: Fusion = "sum",
    gradient_keep: float = 0.5,
) -> np.ndarray:
    """Combine both ranks into one. With d and g the ranks in a cluster of n images:

    - sum: (alpha d + (1 - alpha) g) / n
    - product: d^alpha g^(1 - alpha) / n
    - max: max(d, g) / n
    - two-stage: the first ceil(gradient_keep n) by gradient, nearest first, then the others,
      nearest first: d / 2n, and (d + n) / 2n.

    Sums and logarithms are rounded to nine decimals, so that rows with mathematically equal values
    tie and are ordered by id, not by the last bit.

    Args:
        distance_rank: (N,) 1 = nearest to the centroid.
        gradient_rank: (N,) 1 = largest.
        size: (N,) members of the row's cluster.
        alpha: weight of the distance rank, for sum and product.
        fusion: which of the above.
        gradient_keep: for two-stage.

    Returns:
        (N,) float64 in (0, 1], smaller is better.
    """
    fused: np.ndarray
    if fusion == "max":
        fused = np.maximum(distance_rank, gradient_rank) / size
    elif fusion == "product":
        logarithm = alpha * np.log(distance_rank) + (1 - alpha) * np.log(gradient_rank)
        fused = np.exp(np.round(logarithm, 9)) / size
    elif fusion == "two-stage":
        later = gradient_rank > np.ceil(np.round(gradient_keep * size, 9))
        fused = (distance_rank + later * size) / (2 * size)
    else:
        fused = np.round(alpha * distance_rank + (1 - alpha) * gradient_rank, 9) / size
    return fused
