"""Spherical k-means over teacher features.

FAISS trains the centroids on a sample of the pool, in memory; then every image is assigned to its
nearest centroid, piece by piece. Clusters that k-means leaves without members are dropped.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from echostill.curation.selection.assignment import AssignPiece, GatherPiece, on_grid
from echostill.curation.selection.features import ArrayFeatures, Features, inverse
from echostill.curation.selection.kmeans import train_centroids
from echostill.platform.config import Config
from echostill.platform.errors import UsageError
from echostill.platform.phases import phase
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.seeding import stream
from echostill.platform.tables.ids import first_ids

AUTO_CLUSTERS_MAX = 1000


class ClusteringSettings(Config):
    """How the pool is divided into clusters."""

    clusters: int | Literal["auto"] = Field(
        "auto",
        description="Number of clusters; 'auto' is round(sqrt(images)), at most 1000 and at most a "
        "quarter of the images. Never more than there are images.",
    )
    iterations: int = Field(25, ge=1, description="k-means iterations.")
    redo: int = Field(1, ge=1, description="k-means runs with different starts; the best is kept.")
    max_points_per_centroid: int | None = Field(
        256,
        ge=1,
        description="Train on a sample of at most this many images per cluster; every image is "
        "assigned. null trains on all images.",
    )
    gpus: tuple[int, ...] = Field(
        (),
        description="Ids of the GPUs on which FAISS clusters; empty means the CPU. A GPU rounds "
        "differently, so this is part of the fingerprint.",
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
        requested: number of clusters requested, after 'auto' and the bound N were applied.
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
    are meaningful. The published method states no number: this one is inferred.

    Raises:
        UsageError: A number below 1.
    """
    if clusters == "auto":
        return max(1, min(round(math.sqrt(rows)), AUTO_CLUSTERS_MAX, rows // 4))
    if clusters < 1:
        raise UsageError(f"clusters is {clusters}; expected 'auto' or an integer of at least 1.")
    return min(clusters, rows)


def training_rows(rows: int, settings: ClusteringSettings) -> int:
    """Return how many of ``rows`` images k-means is trained on."""
    if settings.max_points_per_centroid is None:
        return rows
    return min(rows, cluster_count(rows, settings.clusters) * settings.max_points_per_centroid)


def cluster_features(
    features: np.ndarray, ids: pa.Array, settings: ClusteringSettings, tasks: TaskPool | None = None
) -> Clustering:
    """Divide features in memory by spherical k-means; see :func:`cluster_pieces`.

    Args:
        features: (N, D), any float type; scaled to unit length here.
        ids: image ids of the N rows.
        settings: number of clusters, iterations, seed.
        tasks: who assigns; None for threads of this process.
    """
    if features.ndim != 2 or not features.size:
        raise UsageError(
            f"nothing to cluster: features of shape {features.shape}, expected (N, D)."
        )
    return cluster_pieces(ArrayFeatures(features), ids, np.arange(len(ids)), settings, tasks)


def cluster_pieces(
    features: Features,
    ids: pa.Array,
    order: np.ndarray,
    settings: ClusteringSettings,
    tasks: TaskPool | None = None,
) -> Clustering:
    """Divide features by spherical k-means (each image goes to the centroid of largest cosine).

    The features are read twice, a block at a time: once to check every row and take the training
    sample, and once to assign. Memory holds the sample (4 D bytes a row) and a few numbers per
    image. The result depends only on the rows in the order of ``ids``, not on the pieces, the
    threads or the workers.

    Args:
        features: N rows in any order.
        ids: image ids of the N rows, in the order of the result; callers sort them.
        order: (N,) row numbers of ``features`` in the order of ``ids``.
        settings: number of clusters, iterations, sample, seed.
        tasks: who reads and assigns; None for threads of this process.

    Raises:
        UsageError: No rows, rows that are zero or not finite, or a number of clusters below 1.
    """
    rows = len(ids)
    if rows == 0:
        raise UsageError("nothing to cluster: no features.")
    tasks = tasks or TaskPool()
    place = inverse(order)
    edges = np.concatenate([[0], np.cumsum(features.counts)])
    requested = cluster_count(rows, settings.clusters)
    chosen = _sample(rows, training_rows(rows, settings), settings.seed)
    with phase("training sample"):
        sample = _gather(features, ids, chosen, place, edges, tasks)
    with phase("k-means training"):
        trained = train_centroids(
            sample,
            requested,
            iterations=settings.iterations,
            seed=settings.seed,
            redo=settings.redo,
            gpus=settings.gpus,
        )
        centroids = on_grid(trained)
        del sample
    with phase("assignment"):
        cluster = np.empty(rows, dtype=np.int32)
        distance = np.empty(rows, dtype=np.float32)
        assign = AssignPiece(features, centroids, settings.gpus)
        pieces = np.flatnonzero(np.diff(edges)).tolist()
        for number, found in tasks.map(assign, pieces):
            where = place[edges[pieces[number]] : edges[pieces[number] + 1]]
            cluster[where], distance[where] = found.cluster, found.distance
    # Drop clusters without members (duplicate images), and number the others without gaps.
    used = np.flatnonzero(np.bincount(cluster, minlength=len(centroids)))
    renumbered = np.full(len(centroids), -1, dtype=np.int32)
    renumbered[used] = np.arange(len(used))
    return Clustering(
        ids=ids,
        assignment=renumbered[cluster],
        distance=distance,
        centroids=centroids[used],
        requested=requested,
        training_rows=len(chosen),
    )


def _sample(rows: int, size: int, seed: int) -> np.ndarray:
    """Choose the training rows: positions in the order of the ids, ascending."""
    if size >= rows:
        return np.arange(rows)
    return np.sort(stream(seed, "k-means sample").choice(rows, size, replace=False, shuffle=False))


def _gather(
    features: Features,
    ids: pa.Array,
    chosen: np.ndarray,
    place: np.ndarray,
    edges: np.ndarray,
    tasks: TaskPool,
) -> np.ndarray:
    """Read the training rows, of unit length and in the order of their ids, (m, D) float32."""
    wanted = np.zeros(len(ids), dtype=bool)
    wanted[chosen] = True
    wanted = wanted[place]  # in the order of the features
    sample = np.empty((len(chosen), features.dimension), dtype=np.float32)
    broken: list[np.ndarray] = []
    pieces = range(len(edges) - 1)
    arguments = [(piece, wanted[edges[piece] : edges[piece + 1]]) for piece in pieces]
    for piece, (rows, unusable) in tasks.map(GatherPiece(features), arguments):
        where = place[edges[piece] : edges[piece + 1]]
        sample[np.searchsorted(chosen, where[arguments[piece][1]])] = rows
        broken.append(where[unusable])
    lost = np.sort(np.concatenate(broken))
    if len(lost):
        raise UsageError(
            f"{len(lost)} of {len(ids)} features cannot be clustered (all zero, or not finite): "
            f"{first_ids(ids, lost)}. Score these images again or leave them out of the pool."
        )
    return sample
