"""Which images a report shows: informative ones, spread over the clusters, always the same."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SMALL = 4  # clusters below this say little about what was preferred


@dataclass(frozen=True)
class Rows:
    """Columns of a coreset table as arrays, (N,) each."""

    image_id: np.ndarray
    cluster: np.ndarray
    size: np.ndarray
    distance_rank: np.ndarray
    gradient_rank: np.ndarray
    dual_rank: np.ndarray
    cluster_rank: np.ndarray
    quota: np.ndarray
    selected: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "Rows":
        """Take the columns out of a coreset table."""

        def column(name: str) -> np.ndarray:
            values: np.ndarray = table[name].to_numpy()
            return values

        return cls(
            image_id=column("image_id"),
            cluster=column("cluster"),
            size=column("cluster_size"),
            distance_rank=column("distance_rank"),
            gradient_rank=column("gradient_rank"),
            dual_rank=column("dual_rank"),
            cluster_rank=column("cluster_rank"),
            quota=_cluster_quotas(table),
            selected=column("selected").astype(bool),
        )

    @property
    def distance_place(self) -> np.ndarray:
        """Distance rank over the cluster's size, in (0, 1]; small is near."""
        share: np.ndarray = self.distance_rank / self.size
        return share

    @property
    def gradient_place(self) -> np.ndarray:
        """Gradient rank over the cluster's size, in (0, 1]; small is a large gradient."""
        share: np.ndarray = self.gradient_rank / self.size
        return share


@dataclass(frozen=True)
class Clusters:
    """The clusters, largest first; ties by number."""

    number: np.ndarray
    size: np.ndarray
    quota: np.ndarray
    selected: np.ndarray


@dataclass(frozen=True)
class Gallery:
    """A row of pictures: positions in the coreset table."""

    title: str
    explanation: str
    positions: np.ndarray


def _cluster_quotas(table: pa.Table) -> np.ndarray:
    """Quota of each row's cluster, (N,): where the budget was balanced, over the strata in it."""
    quota: np.ndarray = table["quota"].to_numpy()
    if "stratum" not in table.column_names:
        return quota
    cluster = table["cluster"].to_numpy()
    stratum = pc.dictionary_encode(table["stratum"].combine_chunks()).indices.to_numpy()
    _, first = np.unique(np.stack([cluster, stratum]), axis=1, return_index=True)
    totals = np.bincount(cluster[first], weights=quota[first]).astype(quota.dtype)
    quotas: np.ndarray = totals[cluster]
    return quotas


def clusters_of(rows: Rows) -> Clusters:
    """Summarise the clusters."""
    number, first, inverse = np.unique(rows.cluster, return_index=True, return_inverse=True)
    size, quota = rows.size[first], rows.quota[first]
    selected = np.bincount(inverse, weights=rows.selected, minlength=len(number)).astype(int)
    order = np.lexsort((number, -size))
    return Clusters(number[order], size[order], quota[order], selected[order])


def nearest_members(rows: Rows, cluster: int, count: int) -> np.ndarray:
    """Positions of the members nearest to a cluster's centroid."""
    members = np.flatnonzero(rows.cluster == cluster)
    return members[np.argsort(rows.distance_rank[members], kind="stable")[:count]]


def evenly(positions: np.ndarray, count: int) -> np.ndarray:
    """Take so many positions, evenly spaced."""
    if len(positions) <= count:
        return positions
    spaced: np.ndarray = positions[np.linspace(0, len(positions) - 1, count).astype(int)]
    return spaced


def galleries(rows: Rows, count: int) -> list[Gallery]:
    """Choose the galleries; ones without an image are left out."""
    boundary = _boundary_clusters(rows, count)
    chosen, rejected = rows.selected, ~rows.selected & (rows.size >= SMALL)
    gap = rows.distance_place - rows.gradient_place
    picked = [
        Gallery(
            "Chosen first",
            "The best dual ranks: close to their centroid and with a large gradient.",
            _spread(rows, chosen & (rows.size >= SMALL), rows.dual_rank, count),
        ),
        Gallery(
            "Just in",
            "The last image that each of the largest clusters gave.",
            _at_boundary(rows, boundary, inside=True),
        ),
        Gallery(
            "Just out",
            "The first image that the same clusters held back, in the same order.",
            _at_boundary(rows, boundary, inside=False),
        ),
        Gallery(
            "Rejected by distance",
            "Large gradients, but far from their centroid: unusual for their cluster.",
            _spread(rows, rejected & (gap > 0), -gap, count),
        ),
        Gallery(
            "Rejected by gradient",
            "Close to their centroid, but with small gradients: the proxy has little to learn.",
            _spread(rows, rejected & (gap < 0), gap, count),
        ),
    ]
    return [gallery for gallery in picked if len(gallery.positions)]


def _spread(rows: Rows, allowed: np.ndarray, value: np.ndarray, count: int) -> np.ndarray:
    """Smallest values first, one per cluster before a cluster gives a second."""
    positions = np.flatnonzero(allowed)
    order = positions[np.lexsort((positions, value[positions]))]
    _, first = np.unique(rows.cluster[order], return_index=True)
    lead = np.sort(first)[:count]
    rest = np.setdiff1d(np.arange(len(order)), lead)[: count - len(lead)]
    shown: np.ndarray = order[np.concatenate([lead, rest])]
    return shown


def _boundary_clusters(rows: Rows, count: int) -> np.ndarray:
    clusters = clusters_of(rows)
    both = (clusters.selected > 0) & (clusters.selected < clusters.size)
    return clusters.number[both][:count]


def _at_boundary(rows: Rows, clusters: np.ndarray, *, inside: bool) -> np.ndarray:
    """The last selected, or the first rejected, member of each cluster."""
    found = []
    for cluster in clusters:
        members = np.flatnonzero((rows.cluster == cluster) & (rows.selected == inside))
        rank = rows.cluster_rank[members]
        found.append(members[rank.argmax() if inside else rank.argmin()])
    return np.array(found, dtype=np.int64)
