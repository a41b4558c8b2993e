"""Spherical k-means over teacher features: where in the pool an image lives.

FAISS does the work. Three of its habits are made explicit here: it trains on a silent sample of 256
rows per cluster unless told otherwise, it warns instead of stopping when a cluster gets few rows,
and it may leave clusters without members.
"""

import math
from dataclasses import dataclass
from typing import Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from echostill.platform.config import Config
from echostill.platform.errors import UsageError

AUTO_CLUSTERS_MAX = 1000
ROWS_PER_CHUNK = 8192  # bounds the float64 copies below to about 50 MB at 768 dimensions


class ClusteringSettings(Config):
    """How the pool is divided into clusters."""

    clusters: int | Literal["auto"] = Field(
        "auto",
        description="Number of clusters; 'auto' is round(sqrt(images)), at most 1000 and at most a "
        "quarter of the images. Never more than there are images.",
    )
    iterations: int = Field(25, ge=1, description="k-means iterations.")
    redo: int = Field(1, ge=1, description="k-means runs with other starts; the best one is kept.")
    max_points_per_centroid: int | None = Field(
        None, ge=1, description="Train on at most this many images per cluster; null is all images."
    )
    seed: int = Field(0, ge=0, description="Seed of the starting centroids.")


@dataclass(frozen=True)
class Clustering:
    """A pool divided into clusters.

    Attributes:
        ids: image ids of the N rows.
        assignment: (N,) int32, cluster of each row, 0..k-1; every cluster has a member.
        distance: (N,) float32, 1 - cosine similarity to the row's own centroid, in [0, 2].
        centroids: (k, D) float32, of unit length (zero where the members cancel out).
        requested: number of clusters asked for, after 'auto' and the bound by N were resolved.
        training_rows: number of rows that k-means was trained on.
    """

    ids: pa.Array
    assignment: np.ndarray
    distance: np.ndarray
    centroids: np.ndarray
    requested: int
    training_rows: int

    @property
    def count(self) -> int:
        """Number of clusters that have members; duplicates in the pool can make it < requested."""
        return len(self.centroids)

    @property
    def sizes(self) -> np.ndarray:
        """Members of each cluster, (k,) int64."""
        return np.bincount(self.assignment, minlength=self.count)


def cluster_count(rows: int, clusters: int | Literal["auto"]) -> int:
    """Resolve the number of clusters for a pool of ``rows`` images.

    'auto' is round(sqrt(rows)), at most 1000, and at most rows // 4 so that ranks inside a cluster
    mean something. The published method states no number: this one is inferred.

    Raises:
        UsageError: A number below 1.
    """
    if clusters == "auto":
        return max(1, min(round(math.sqrt(rows)), AUTO_CLUSTERS_MAX, rows // 4))
    if clusters < 1:
        raise UsageError(f"clusters is {clusters}; expected 'auto' or a number from 1.")
    return min(clusters, rows)


def feature_matrix(column: pa.ChunkedArray, order: np.ndarray) -> np.ndarray:
    """Read a fixed-size-list column into a matrix, rows in the given order.

    Args:
        column: N lists of D numbers each.
        order: (N,) row numbers of the column, in the order in which they are wanted.

    Returns:
        (N, D) in the column's own type: float16 stays float16.

    Raises:
        UsageError: The column is not of fixed-size lists of numbers, or has nulls.
    """
    if not pa.types.is_fixed_size_list(column.type):
        raise UsageError(
            f"column 'feature' is {column.type}; expected fixed-size lists of float16. Run "
            "`echostill score` again."
        )
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    kind = column.type.value_type.to_pandas_dtype()
    matrix = np.empty((len(order), column.type.list_size), dtype=kind)
    start = 0
    for chunk in column.chunks:
        values = chunk.flatten()
        if chunk.null_count or values.null_count:
            raise UsageError("column 'feature' has nulls. Run `echostill score` again.")
        rows = values.to_numpy().reshape(len(chunk), matrix.shape[1])
        matrix[place[start : start + len(chunk)]] = rows
        start += len(chunk)
    return matrix


def normalised(features: np.ndarray, ids: pa.Array) -> np.ndarray:
    """Scale every row to unit length.

    Args:
        features: (N, D), any float type.
        ids: image ids of the rows, for the error.

    Returns:
        (N, D) float32, C-contiguous; lengths are computed in float64.

    Raises:
        UsageError: Rows that are not finite or are zero.
    """
    unit = np.empty(features.shape, dtype=np.float32)
    broken: list[np.ndarray] = []
    for start in range(0, len(features), ROWS_PER_CHUNK):
        block = features[start : start + ROWS_PER_CHUNK].astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", block, block))
        usable = np.isfinite(length) & (length > 0)
        broken.append(start + np.flatnonzero(~usable))
        length[~usable] = 1.0
        unit[start : start + ROWS_PER_CHUNK] = block / length[:, None]
    rows = np.concatenate(broken) if broken else np.empty(0, dtype=np.int64)
    if len(rows):
        raise UsageError(
            f"{len(rows)} of {len(features)} features cannot be clustered (zero, or not finite): "
            f"{first_ids(ids, rows)}. Score these images again or leave them out of the pool."
        )
    return unit


def cluster_features(
    features: np.ndarray, ids: pa.Array, settings: ClusteringSettings
) -> Clustering:
    """Divide features by spherical k-means (each image goes to the centroid of largest cosine).

    The result depends on the order of the rows: callers sort them by id.

    Args:
        features: (N, D), any float type; scaled to unit length here.
        ids: image ids of the N rows.
        settings: number of clusters, iterations, seed.

    Raises:
        UsageError: No rows, rows that are zero or not finite, or a number of clusters below 1.
    """
    if features.ndim != 2 or not features.size:
        raise UsageError(
            f"nothing to cluster: features of shape {features.shape}, expected (N, D)."
        )
    unit = normalised(features, ids)
    rows, dimension = unit.shape
    requested = cluster_count(rows, settings.clusters)
    # FAISS takes a sample when rows > clusters * max_points_per_centroid: this bound is never met.
    points = settings.max_points_per_centroid or math.ceil(rows / requested)
    kmeans = faiss.Kmeans(
        dimension,
        requested,
        niter=settings.iterations,
        nredo=settings.redo,
        seed=settings.seed % 2**31,  # FAISS holds it in 32 bits
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=points,
    )
    kmeans.train(unit)
    _, nearest_centroid = kmeans.index.search(unit, 1)
    # Clusters without members (duplicate images) are dropped, and the rest numbered without gaps.
    used, assignment = np.unique(nearest_centroid[:, 0], return_inverse=True)
    assignment = assignment.astype(np.int32)
    centroids = _unit_centroids(np.asarray(kmeans.centroids)[used])
    return Clustering(
        ids=ids,
        assignment=assignment,
        distance=_distances(unit, centroids, assignment),
        centroids=centroids,
        requested=requested,
        training_rows=min(rows, requested * points),
    )


def first_ids(ids: pa.Array, rows: np.ndarray, limit: int = 3) -> str:
    """Name the first few of the given rows by their ids, for an error message."""
    shown = pc.take(ids, pa.array(rows[:limit])).to_pylist()
    return ", ".join(shown) + (", ..." if len(rows) > limit else "")


def _unit_centroids(centroids: np.ndarray) -> np.ndarray:
    exact = centroids.astype(np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    return (exact / np.where(length > 0, length, 1.0)).astype(np.float32)


def _distances(unit: np.ndarray, centroids: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """1 - cosine in float64: in float32 the difference from 1 loses the digits that ranks need."""
    exact = centroids.astype(np.float64)
    exact_length = np.linalg.norm(exact, axis=1)
    exact_length[exact_length == 0] = 1.0
    distance = np.empty(len(unit), dtype=np.float32)
    for start in range(0, len(unit), ROWS_PER_CHUNK):
        part = slice(start, start + ROWS_PER_CHUNK)
        block = unit[part].astype(np.float64)
        own = assignment[part]
        cosine = np.einsum("ij,ij->i", block, exact[own])
        cosine /= np.sqrt(np.einsum("ij,ij->i", block, block)) * exact_length[own]
        distance[part] = np.maximum(1.0 - cosine, 0.0)
    return distance
