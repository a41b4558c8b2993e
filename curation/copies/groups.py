"""From pairs of copies to groups: which images of a group are kept, and which they represent.

A row is dropped only if it is itself a copy of a row that is kept. In a chain (a is like b, b is
like c, a is not like c) both ends are kept, so that every dropped image has a copy that is kept.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

EXACT, NEAR, SEMANTIC = 0, 1, 2  # kinds of a link, the most certain first
KINDS = ("exact", "near", "semantic")


@dataclass(frozen=True)
class Links:
    """Pairs of rows that are copies of each other.

    Attributes:
        first: (P,) int64 rows.
        second: (P,) int64 rows.
        kind: (P,) int8, EXACT, NEAR or SEMANTIC.
        distance: (P,) float32: 0 for exact, bits for near, 1 - cosine for semantic.
    """

    first: np.ndarray
    second: np.ndarray
    kind: np.ndarray
    distance: np.ndarray

    @classmethod
    def of(
        cls, first: np.ndarray, second: np.ndarray, kind: int, distance: np.ndarray | float = 0.0
    ) -> "Links":
        """Return links of one kind."""
        return cls(
            np.asarray(first, dtype=np.int64),
            np.asarray(second, dtype=np.int64),
            np.full(len(first), kind, dtype=np.int8),
            np.broadcast_to(np.asarray(distance, dtype=np.float32), len(first)),
        )

    @classmethod
    def joined(cls, parts: list["Links"]) -> "Links":
        """Return all links of several kinds."""
        names = ("first", "second", "kind", "distance")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Groups:
    """The group of each of N rows, and which rows are kept.

    Attributes:
        group: (N,) int64, the component of linked rows; -1 if a row has no copy.
        kept: (N,) int64, the row that is kept in place of this one; itself if it is kept.
        kind: (N,) int8, kind of the link to the kept row; -1 if the row is kept.
        distance: (N,) float32, of that link; 0 if the row is kept.
    """

    group: np.ndarray
    kept: np.ndarray
    kind: np.ndarray
    distance: np.ndarray


def group_copies(links: Links, preference: np.ndarray) -> Groups:
    """Decide which rows are kept: in order of preference, each that is no copy of a kept row.

    Args:
        links: Pairs of copies; a pair may occur several times.
        preference: (N,) distinct integers; of two copies, the one with the smaller value is kept.

    Returns:
        The groups. A dropped row is represented by a kept copy that is preferred to it: the one
        with the most certain kind of link, then the nearest, then the most preferred.
    """
    rows = len(preference)
    swap = preference[links.first] > preference[links.second]
    better = np.where(swap, links.second, links.first)
    worse = np.where(swap, links.first, links.second)
    stays = _greedily_kept(better, worse, rows)
    kept = np.arange(rows)
    kind = np.full(rows, -1, dtype=np.int8)
    distance = np.zeros(rows, dtype=np.float32)
    drops = np.flatnonzero(stays[better] & ~stays[worse])
    keys = (preference[better[drops]], links.distance[drops], links.kind[drops], worse[drops])
    drops = drops[np.lexsort(keys)]
    dropped, where = np.unique(worse[drops], return_index=True)
    best = drops[where]
    kept[dropped] = better[best]
    kind[dropped], distance[dropped] = links.kind[best], links.distance[best]
    return Groups(_components(better, worse, rows), kept, kind, distance)


def exact_classes(digests: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """Return for each row the preferred row with the same digest; itself if there is no other.

    Args:
        digests: (N,) sortable values.
        preference: (N,) distinct integers, the smaller the better.
    """
    order = np.lexsort((preference, digests))
    new = np.r_[True, digests[order][1:] != digests[order][:-1]][: len(order)]
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return first


def _greedily_kept(better: np.ndarray, worse: np.ndarray, rows: int) -> np.ndarray:
    """Return which rows are kept, (N,) bool: the sequential greedy choice, computed in rounds.

    A round keeps every undecided row without an undecided better copy, and drops their copies.
    """
    stays = np.ones(rows, dtype=bool)
    open_rows = np.zeros(rows, dtype=bool)
    open_rows[better] = open_rows[worse] = True
    while len(better):
        waits = np.zeros(rows, dtype=bool)
        waits[worse] = True
        decided = open_rows & ~waits
        dropped = worse[decided[better]]
        stays[dropped] = False
        open_rows[decided] = open_rows[dropped] = False
        undecided = open_rows[better] & open_rows[worse]
        better, worse = better[undecided], worse[undecided]
    return stays


def _components(first: np.ndarray, second: np.ndarray, rows: int) -> np.ndarray:
    linked, index = np.unique(np.concatenate([first, second]), return_inverse=True)
    group = np.full(rows, -1, dtype=np.int64)
    if len(linked):
        edges = (np.ones(len(first), dtype=bool), (index[: len(first)], index[len(first) :]))
        graph = sparse.coo_matrix(edges, shape=(len(linked), len(linked)))
        group[linked] = sparse.csgraph.connected_components(graph, directed=False)[1]
    return group
