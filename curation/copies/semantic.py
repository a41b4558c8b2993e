"""Images that the teacher cannot tell apart: cosine of their features, looked at inside clusters.

Raw features of a pretrained model all point much the same way, so that two random images have a
cosine near 1. Less the pool's mean they spread (as in the consistency weight of the distillation,
docs/method.md). Comparing only inside clusters is SemDeDup's device (Abbas et al. 2023,
arXiv:2303.09540): a pair whose images fall into two clusters is missed.
"""

import itertools
import tempfile
from pathlib import Path

import faiss
import numpy as np

from echostill.curation.selection.clustering import cluster_count
from echostill.platform.tables.table import Table

ITERATIONS = 10
POINTS_PER_CENTROID = 64  # enough for clusters that only gather what is alike
ROWS_PER_CHUNK = 8192  # bounds copies in float32
SLACK = 1e-5  # what a cosine in float32 may be off by: candidates are computed again in float64
ROWS_AT_ONCE = 2048  # of a cluster, compared with all of it


class Features:
    """A scores table's features on disk, row by row in the table's order: memory holds blocks."""

    def __init__(self, scores: Table) -> None:
        """Copy the features into a temporary file, which goes when this object does."""
        self._folder = tempfile.TemporaryDirectory(prefix="echostill-features-")
        self.ids: list[str] = []
        total: np.ndarray | None = None
        path = Path(self._folder.name) / "features.f16"
        with path.open("wb") as file:
            for part in scores.parts(["image_id", "feature"]):
                values = part["feature"].combine_chunks()
                block = values.flatten().to_numpy().reshape(len(values), values.type.list_size)
                block.astype(np.float16).tofile(file)
                added = block.sum(axis=0, dtype=np.float64)
                total = added if total is None else total + added
                self.ids += part["image_id"].to_pylist()
        assert total is not None  # a table has a part
        self.mean = (total / max(len(self.ids), 1)).astype(np.float32)
        shape = (len(self.ids), len(self.mean))
        self.rows = (
            np.memmap(path, dtype=np.float16, mode="r", shape=shape)
            if self.ids
            else np.empty(shape, dtype=np.float16)
        )


def centred(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Take the mean away and scale to unit length.

    Args:
        features: (N, D) any float type.
        mean: (D,) of the pool.

    Returns:
        (N, D) float32; a row equal to the mean stays zero, and is like no other.
    """
    moved = features.astype(np.float32) - mean
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.divide(moved, length, out=np.zeros_like(moved), where=length > 0)


def semantic_pairs(
    features: np.ndarray, mean: np.ndarray, labels: np.ndarray, epsilon: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find pairs whose centred features have a cosine of at least 1 - epsilon, inside clusters.

    Args:
        features: (N, D) float16, in memory or mapped.
        mean: (D,) float32, the pool's.
        labels: (N,) integers. Rows of one label are not compared with each other.
        epsilon: Largest 1 - cosine.
        seed: Of the clustering.

    Returns:
        Rows i < j, (P,) int64 each, and 1 - cosine, (P,) float32.
    """
    cluster = _assign(features, mean, seed)
    order = np.argsort(cluster, kind="stable")
    bounds = np.flatnonzero(np.r_[True, np.diff(cluster[order]) != 0, True])
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for begin, end in itertools.pairwise(bounds):
        members = order[begin:end]
        unit = centred(features[members], mean)
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
    features: np.ndarray, mean: np.ndarray, others: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find for each row its most similar one of another set, where it is within epsilon.

    Args:
        features: (N, D) float16 of the pool, in memory or mapped.
        mean: (D,) float32, the pool's: both sets are centred by it.
        others: (M, D) of the other set.
        epsilon: Largest 1 - cosine.

    Returns:
        Rows of the pool, rows of the other set, and 1 - cosine, (P,) each.
    """
    index = faiss.IndexFlatIP(features.shape[1])
    unit = centred(others, mean)
    index.add(unit)
    found = []
    for start in range(0, len(features), ROWS_PER_CHUNK):
        block = centred(features[start : start + ROWS_PER_CHUNK], mean)
        cosine, nearest = index.search(block, 1)
        rows = np.flatnonzero(cosine[:, 0] >= 1 - epsilon - SLACK)
        gap = _gap(block[rows], unit[nearest[rows, 0]])
        near = gap <= epsilon
        found.append((start + rows[near], nearest[rows[near], 0], gap[near]))
    none = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, np.float32))
    row, other, gap = (np.concatenate(column) for column in zip(none, *found, strict=True))
    return row, other, gap


def _gap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of pairs of unit rows, (P,) float32, the same for any number of threads."""
    cosine = (first.astype(np.float64) * second).sum(axis=1)
    return np.maximum(1 - cosine, 0).astype(np.float32)


def _assign(features: np.ndarray, mean: np.ndarray, seed: int) -> np.ndarray:
    """Return each row's cluster of centred features, (N,) int64."""
    rows = len(features)
    count = cluster_count(rows, "auto") if rows else 1
    if count == 1:
        return np.zeros(rows, dtype=np.int64)
    step = max(1, rows // (count * POINTS_PER_CENTROID))
    kmeans = faiss.Kmeans(
        features.shape[1],
        count,
        niter=ITERATIONS,
        seed=seed % 2**31,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=2 * POINTS_PER_CENTROID,
    )
    kmeans.train(centred(features[::step], mean))
    cluster = np.empty(rows, dtype=np.int64)
    for start in range(0, rows, ROWS_PER_CHUNK):
        block = centred(features[start : start + ROWS_PER_CHUNK], mean)
        cluster[start : start + ROWS_PER_CHUNK] = kmeans.index.search(block, 1)[1][:, 0]
    return cluster
