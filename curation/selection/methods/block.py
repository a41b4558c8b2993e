"""Input and output of a selection method.

A method orders the rows of a block: a cluster, a cluster's images of one organ, or the whole pool.
It receives the number of rows that will be chosen and returns a priority per row, smallest first.
The caller divides the budget, chooses the first rows of each block and writes the reasons.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from echostill.curation.selection.features import FeatureRows

IDS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Pool:
    """The scored rows, in the order of their ids.

    Attributes:
        ids: N image ids, sorted.
        cluster: (N,) int32.
        size: (N,) members of each row's cluster.
        distance: (N,) float32, 1 - cosine similarity to the centroid of its cluster.
        quality: (N,) float32, the gradient score.
        distance_rank: (N,) int32 in the cluster, 1 = nearest.
        gradient_rank: (N,) int32 in the cluster, 1 = largest.
        dual_rank: (N,) float64, smaller is better.
        pinned: (N,) bool, rows that are always chosen.
        seed: of random methods.
        group: (N,) integers, the patient, study or clip of each row.
        flagged: (N,) bool, rows that a method with ``flags`` chooses last.
        group_limit: rows that one group may have; None for any number.
        features: by row; None for methods that need none.
    """

    ids: pa.Array
    cluster: np.ndarray
    size: np.ndarray
    distance: np.ndarray
    quality: np.ndarray
    distance_rank: np.ndarray
    gradient_rank: np.ndarray
    dual_rank: np.ndarray
    pinned: np.ndarray
    seed: int
    group: np.ndarray
    flagged: np.ndarray
    group_limit: int | None = None
    features: FeatureRows | None = None

    @property
    def all_features(self) -> FeatureRows:
        """The features of all rows."""
        assert self.features is not None, "the method did not say that it needs features"
        return self.features

    @cached_property
    def draws(self) -> np.ndarray:
        """(N,) numbers in [0, 1): one hash per id, so that an image keeps its draw in any pool."""
        key = f"coreset {self.seed}".encode()
        digests = bytearray()
        for start in range(0, len(self.ids), IDS_AT_ONCE):
            for image_id in self.ids.slice(start, IDS_AT_ONCE).to_pylist():
                digests += hashlib.blake2b(image_id.encode(), digest_size=8, key=key).digest()
        return (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)) / 2.0**53


@dataclass(frozen=True)
class Block:
    """Rows of the pool among which a method chooses.

    Attributes:
        pool: the pool.
        rows: (n,) positions in it, ascending, without excluded rows.
    """

    pool: Pool
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def _of_rows(self, column: np.ndarray) -> np.ndarray:
        values: np.ndarray = column[self.rows]
        return values

    @property
    def cluster(self) -> np.ndarray:
        """(n,) cluster of each row."""
        return self._of_rows(self.pool.cluster)

    @property
    def size(self) -> np.ndarray:
        """(n,) members of each row's cluster."""
        return self._of_rows(self.pool.size)

    @property
    def distance(self) -> np.ndarray:
        """(n,) distance of each row to its centroid."""
        return self._of_rows(self.pool.distance)

    @property
    def quality(self) -> np.ndarray:
        """(n,) gradient score."""
        return self._of_rows(self.pool.quality)

    @property
    def distance_rank(self) -> np.ndarray:
        """(n,) rank in the cluster by distance."""
        return self._of_rows(self.pool.distance_rank)

    @property
    def gradient_rank(self) -> np.ndarray:
        """(n,) rank in the cluster by gradient."""
        return self._of_rows(self.pool.gradient_rank)

    @property
    def dual_rank(self) -> np.ndarray:
        """(n,) fused rank."""
        return self._of_rows(self.pool.dual_rank)

    @property
    def pinned(self) -> np.ndarray:
        """(n,) bool, rows that are always chosen."""
        return self._of_rows(self.pool.pinned)

    @property
    def group(self) -> np.ndarray:
        """(n,) patient, study or clip of each row."""
        return self._of_rows(self.pool.group)

    @property
    def flagged(self) -> np.ndarray:
        """(n,) bool, rows that are chosen last."""
        return self._of_rows(self.pool.flagged)

    @property
    def draws(self) -> np.ndarray:
        """(n,) random numbers in [0, 1), a function of seed and id."""
        return self._of_rows(self.pool.draws)

    @property
    def features(self) -> np.ndarray:
        """(n, D) features as stored."""
        return self.pool.all_features.take(self.rows)


# The last argument holds the settings; each method declares the keys that it reads.
Order = Callable[[Block, int, Any], np.ndarray]


@dataclass(frozen=True)
class Method:
    """A selection method.

    Attributes:
        order: (n,) float64 priorities of a block's rows; smaller is chosen first, ties are broken
            by id. ``count`` rows will be chosen, including pinned ones, which always come first.
        blocked: whether it chooses inside clusters, each with its quota, by default.
        first: what it chooses first, for the table of docs/selection.md.
        better: what filled a quota, for the reason of a row that was not chosen.
        equal: the same if the rows tie.
        by_row: the order does not depend on ``count`` or on the block beyond its clusters, so that
            one call serves the whole pool.
        group_limit: whether 'auto' limits the images of a group; the method itself skips the rows
            of full groups, as far as it sees them.
        flags: whether it chooses images with the quality flags ``flags_last`` last.
        compares: whether it compares images with each other and needs their features.
        by_dual_rank: whether it chooses the smallest dual ranks first.
        trims: whether it chooses the share ``trim`` of a cluster's largest gradients last.
        tree: whether its quotas run down a tree of clusters.
        operations: floating-point operations for (rows, dimension, count) of one block; those
            limited by memory bandwidth count sixteen times; None if negligible.
        memory: bytes for (rows, dimension) of one block.
    """

    order: Order
    blocked: bool
    first: str
    better: str
    equal: str = "equal ones with smaller ids"
    by_row: bool = False
    group_limit: bool = False
    flags: bool = False
    compares: bool = False
    by_dual_rank: bool = False
    trims: bool = False
    tree: bool = False
    operations: Callable[[int, int, int], float] | None = None
    memory: Callable[[int, int], float] | None = None


def in_order(first: list[int], rest: np.ndarray) -> np.ndarray:
    """Convert picks to priorities.

    Args:
        first: rows in the order in which they were picked.
        rest: (n,) values that order the other rows, smaller first; ties are broken by row.

    Returns:
        (n,) float64: 0, 1, 2, ... for the picks, then the others.
    """
    picked = np.array(first, dtype=np.int64)
    others = np.ones(len(rest), dtype=bool)
    others[picked] = False
    remaining = np.flatnonzero(others)
    remaining = remaining[np.argsort(rest[remaining], kind="stable")]
    priority = np.empty(len(rest), dtype=np.float64)
    priority[picked] = np.arange(len(picked))
    priority[remaining] = np.arange(len(picked), len(rest))
    return priority
