"""SSL prototypes (Sorscher et al. 2022): difficulty is the distance to the nearest prototype."""

from typing import Literal, Protocol

import numpy as np
from pydantic import Field

from echostill.curation.selection.methods.block import Block
from echostill.curation.selection.quotas import share
from echostill.platform.config import Config


class PrototypeSettings(Config):
    """Which images ssl-prototypes keeps."""

    keep: Literal["hard", "easy"] = Field(
        "hard",
        description="Far from their prototype (where images abound) or near it (where they are "
        "scarce).",
    )
    floor: float = Field(
        0.5, ge=0, le=1, description="Share of its proportional quota that every cluster keeps."
    )


class HasPrototypes(Protocol):
    """Settings that have the keys of this method."""

    @property
    def prototypes(self) -> PrototypeSettings:
        """The keys."""
        ...


def ssl_prototypes(block: Block, count: int, settings: HasPrototypes) -> np.ndarray:
    """Choose the hardest (or easiest) images of the pool, with a minimum for every cluster.

    The prototypes are the clusters' centroids. To keep every cluster, each contributes its best
    images up to ``floor`` times its proportional quota.
    """
    sign = -1.0 if settings.prototypes.keep == "hard" else 1.0
    difficulty = sign * block.distance.astype(np.float64)
    _, cluster = np.unique(block.cluster, return_inverse=True)
    sizes = np.bincount(cluster)
    kept = np.floor(settings.prototypes.floor * share(sizes, count)).astype(np.int64)
    order = np.lexsort((difficulty, cluster))
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(block), dtype=np.int64)
    rank[order] = np.arange(len(block)) - np.repeat(starts, sizes)
    # Distances are in [0, 2]: images within the minimum come before all others.
    return difficulty - 8.0 * (rank < kept[cluster])
