"""Hierarchical k-means (Vo et al. 2024): clusters of clusters, with quotas from the top down."""

import math
from typing import Literal, Protocol

import numpy as np
from pydantic import Field

from echostill.curation.selection.kmeans import flat_index, train_centroids
from echostill.curation.selection.methods.block import Block
from echostill.platform.config import Config


class HierarchySettings(Config):
    """The tree of clusters."""

    levels: int = Field(
        3,
        ge=1,
        description="Levels of clusters. The first is the pool's clusters; each further level "
        "clusters the centroids below it, into the square root of their number.",
    )
    leaf: Literal["random", "closest"] = Field(
        "random", description="What is chosen in a cluster: random images, or the nearest."
    )


class HasHierarchy(Protocol):
    """Settings that have the keys of this method."""

    @property
    def hierarchy(self) -> HierarchySettings:
        """The keys."""
        ...


def in_leaf(block: Block, count: int, settings: HasHierarchy) -> np.ndarray:
    """Choose random images of a cluster, or those nearest to its centroid."""
    if settings.hierarchy.leaf == "random":
        return block.draws
    return block.distance.astype(np.float64)


def cluster_tree(
    centroids: np.ndarray, levels: int, iterations: int, seed: int
) -> list[np.ndarray]:
    """Cluster the centroids, and the centroids of these clusters, and so on.

    Args:
        centroids: (k, D) float32 of unit length.
        levels: of the tree, the centroids' own included.
        iterations: of k-means.
        seed: of the starting centroids.

    Returns:
        For each level above the first: the parents (clusters of that level) of those below it.
    """
    parents = []
    current = centroids
    for _ in range(levels - 1):
        count = round(math.sqrt(len(current)))
        if count < 2 or count >= len(current):
            break
        above = train_centroids(current, count, iterations=iterations, seed=seed)
        _, nearest = flat_index(above).search(np.ascontiguousarray(current), 1)
        used, parent = np.unique(nearest[:, 0], return_inverse=True)
        parents.append(parent.astype(np.int64))
        current = above[used]
    return parents
