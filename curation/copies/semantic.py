"""Images that the teacher cannot distinguish: cosine of their features, compared inside clusters.

Raw features of a pretrained model all have similar directions, so that two random images have a
cosine close to 1. After the pool's mean is subtracted they spread (as in the consistency weight of
the distillation, docs/method.md). Comparing only inside clusters follows SemDeDup (Abbas et al.
2023, arXiv:2303.09540): a pair whose images are in different clusters is missed.
"""

import itertools
from collections.abc import Iterator

import numpy as np

from echostill.curation.selection.clustering import cluster_count
from echostill.curation.selection.features import Features, all_blocks, joined
from echostill.curation.selection.kmeans import flat_index, train_centroids

ITERATIONS = 10
POINTS_PER_CENTROID = 64  # enough for clusters that only gather what is alike
ROWS_PER_CHUNK = 8192  # bounds copies in float32
SLACK = 1e-5  # what a cosine in float32 may be off by: candidates are computed again in float64
ROWS_AT_ONCE = 2048  # of a cluster, compared with all of it
BYTES_PER_PASS = 2**30  # of features held at once: those of some clusters, read in one pass


def mean_feature(features: Features) -> np.ndarray:
    """Compute the pool's mean, (D,) float32: halves add up exactly in double precision."""
    total = np.zeros(features.dimension, dtype=np.float64)
    for block in all_blocks(features):
        total += block.sum(axis=0, dtype=np.float64)
    return (total / max(sum(features.counts), 1)).astype(np.float32)


def centred(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Subtract the mean and scale to unit length.

    Args:
        features: (N, D) any float type.
        mean: (D,) of the pool.

    Returns:
        (N, D) float32; a row equal to the mean stays zero, and matches no other.
    """
    moved = features.astype(np.float32) - mean
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    unit: np.ndarray = np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)
    return unit


def semantic_pairs(
    features: Features, mean: np.ndarray, labels: np.ndarray, epsilon: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find pairs whose centred features have a cosine of at least 1 - epsilon, inside clusters.

    Args:
        features: N rows; read a few times, a block at a time.
        mean: (D,) float32, the pool's.
        labels: (N,) integers. Rows of one label are not compared with each other.
        epsilon: Largest 1 - cosine.
        seed: Of the clustering.

    Returns:
        Rows i < j, (P,) int64 each, and 1 - cosine, (P,) float32.
    """
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for members, rows in _clusters(features, _assign(features, mean, seed)):
        unit = centred(rows, mean)
        for start in range(0, len(members), ROWS_AT_ONCE):
            cosine = unit[start : start + ROWS_AT_ONCE] @ unit[start:].T
            one, other = np.nonzero(np.triu(cosine >= 1 - epsilon - SLACK, 1))
            first, second = members[start + one], members[start + other]
            gap = _gap(unit[start + one], unit[start + other])
            near = (labels[first] != labels[second]) & (gap <= epsilon)
            found.append((first[near], second[near], gap[near]))
    none = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, np.float32))
    first, second, gap = (np.concatenate(column) for column in zip(none, *found, strict=True))
    return np.minimum(first, second), np.maximum(first, second), gap


def nearest_features(
    features: Features, mean: np.ndarray, others: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find for each row the most similar row of another set, if it is within epsilon.

    Args:
        features: N rows of the pool; read once, a block at a time.
        mean: (D,) float32, the pool's: both sets are centred by it.
        others: (M, D) of the other set.
        epsilon: Largest 1 - cosine.

    Returns:
        Rows of the pool, rows of the other set, and 1 - cosine, (P,) each.
    """
    unit = centred(others, mean)
    index = flat_index(unit)
    found = []
    start = 0
    for chunk in joined(all_blocks(features), ROWS_PER_CHUNK):
        block = centred(chunk, mean)
        cosine, nearest = index.search(block, 1)
        rows = np.flatnonzero(cosine[:, 0] >= 1 - epsilon - SLACK)
        gap = _gap(block[rows], unit[nearest[rows, 0]])
        near = gap <= epsilon
        found.append((start + rows[near], nearest[rows[near], 0], gap[near]))
        start += len(chunk)
    none = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, np.float32))
    row, other, gap = (np.concatenate(column) for column in zip(none, *found, strict=True))
    return row, other, gap


def _gap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of pairs of unit rows, (P,) float32, the same for any number of threads."""
    cosine = (first.astype(np.float64) * second).sum(axis=1)
    gap: np.ndarray = np.maximum(1 - cosine, 0).astype(np.float32)
    return gap


def _clusters(features: Features, cluster: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each cluster's row numbers, (n,) ascending, and its features, (n, D).

    In a pass over all features so many clusters are gathered as ``BYTES_PER_PASS`` holds.
    """
    order = np.argsort(cluster, kind="stable")
    bounds = np.flatnonzero(np.r_[True, np.diff(cluster[order]) != 0, True])
    limit = BYTES_PER_PASS // (2 * features.dimension)
    first = 0
    while first < len(bounds) - 1:
        fitting = int(np.searchsorted(bounds, bounds[first] + limit, side="right")) - 1
        last = max(fitting, first + 1)
        begin = bounds[first]
        rows = _gathered(features, order[begin : bounds[last]])
        for low, high in itertools.pairwise(bounds[first : last + 1]):
            yield order[low:high], rows[low - begin : high - begin]
        first = last


def _gathered(features: Features, wanted: np.ndarray) -> np.ndarray:
    """Read some rows in the order in which they are wanted, (n, D) of the features' own type."""
    place = np.full(sum(features.counts), -1, dtype=np.int64)
    place[wanted] = np.arange(len(wanted))
    rows: np.ndarray | None = None
    start = 0
    for block in all_blocks(features):
        if rows is None:
            rows = np.empty((len(wanted), features.dimension), dtype=block.dtype)
        own = place[start : start + len(block)]
        take = own >= 0
        rows[own[take]] = block[take]
        start += len(block)
    return np.empty((0, features.dimension), np.float16) if rows is None else rows


def _assign(features: Features, mean: np.ndarray, seed: int) -> np.ndarray:
    """Return each row's cluster of centred features, (N,) int64."""
    rows = sum(features.counts)
    count = cluster_count(rows, "auto") if rows else 1
    if count == 1:
        return np.zeros(rows, dtype=np.int64)
    step = max(1, rows // (count * POINTS_PER_CENTROID))
    sample = centred(_gathered(features, np.arange(0, rows, step)), mean)
    index = flat_index(train_centroids(sample, count, iterations=ITERATIONS, seed=seed))
    found = [
        index.search(centred(chunk, mean), 1)[1][:, 0]
        for chunk in joined(all_blocks(features), ROWS_PER_CHUNK)
    ]
    return np.concatenate(found)
