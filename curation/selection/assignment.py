"""Assignment of features to their nearest centroids, with the same result wherever it is computed.

FAISS finds the centroids of largest cosine in single precision. The last digits depend on the
number of rows in a call, so that near ties would be decided differently in different blocks. Rows
whose two best cosines differ by less than the error of single precision are therefore decided again
in double precision. That is exact: float16 values and centroids are multiples of 2^-24 here, their
products multiples of 2^-48, and a double holds the sum of D such products without rounding, in any
order. The result therefore depends only on the row and the centroids.
"""

from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from echostill.curation.selection.features import Features, usable_rows
from echostill.curation.selection.kmeans import flat_index

GRID = 2.0**24
CANDIDATES = 4  # centroids per row that FAISS returns; they nearly always include all near ties
_GPU = Lock()  # an index on GPUs serves one caller at a time


@dataclass(frozen=True)
class Assigned:
    """A piece of the pool, assigned.

    Attributes:
        cluster: (n,) int32, number of the centroid.
        distance: (n,) float32, 1 - cosine similarity to it, in [0, 2].
    """

    cluster: np.ndarray
    distance: np.ndarray


def on_grid(centroids: np.ndarray) -> np.ndarray:
    """Scale centroids to unit length and round them to multiples of 2^-24.

    Args:
        centroids: (k, D), any float type; zero rows stay zero.

    Returns:
        (k, D) float32.
    """
    exact = centroids.astype(np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    unit = exact / np.where(length > 0, length, 1.0)
    return (np.round(unit * GRID) / GRID).astype(np.float32)


@dataclass(frozen=True)
class AssignPiece:
    """Assigns the rows of one piece of the features; created once, called in threads or workers."""

    features: Features
    centroids: np.ndarray
    gpus: tuple[int, ...] = ()

    def __call__(self, piece: int) -> Assigned:
        """Assign a piece."""
        import faiss

        # Pieces are assigned side by side: threads inside FAISS would wait for each other's blocks.
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            found = [self.assign(block) for block in self.features.blocks(piece)]
        finally:
            faiss.omp_set_num_threads(threads)
        return Assigned(
            np.concatenate([part.cluster for part in found]),
            np.concatenate([part.distance for part in found]),
        )

    def assign(self, block: np.ndarray) -> Assigned:
        """Assign some rows, (n, D) of any float type, finite and not zero."""
        exact = block.astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", exact, exact))
        unit = (exact / length[:, None]).astype(np.float32)
        cosine, nearest = self._search(unit)
        cluster = nearest[:, 0].astype(np.int32)
        unsure = np.flatnonzero((cosine[:, 1:2] >= cosine[:, :1] - self._margin).any(axis=1))
        if len(unsure):
            cluster[unsure] = self._decide(exact[unsure], cosine[unsure], nearest[unsure])
        product = np.einsum("ij,ij->i", exact, self._exact[cluster])
        distance = 1.0 - product / (length * self._lengths[cluster])
        return Assigned(cluster, np.clip(distance, 0.0, 2.0).astype(np.float32))

    def _decide(self, exact: np.ndarray, cosine: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        """Find the nearest centroid in double precision; the first of equal ones, (n,)."""
        options = np.sort(nearest, axis=1)
        products = np.einsum("ij,ikj->ik", exact, self._exact[options]) / self._lengths[options]
        best: np.ndarray = options[np.arange(len(options)), products.argmax(axis=1)]
        # If even the last candidate is within the margin, an unlisted centroid may be nearer.
        crowded = cosine[:, -1] >= cosine[:, 0] - self._margin
        if nearest.shape[1] < len(self.centroids) and crowded.any():
            all_products = (exact[crowded] @ self._exact.T) / self._lengths
            best[crowded] = all_products.argmax(axis=1)
        return best

    def _search(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        best = min(CANDIDATES, len(self.centroids))
        if not self.gpus:
            cosine, nearest = self._index.search(unit, best)
        else:
            with _GPU:
                cosine, nearest = self._index.search(unit, best)
        return cosine, nearest

    @property
    def _margin(self) -> float:
        """Largest joint error of two inner products of unit vectors in single precision."""
        margin: float = (self.centroids.shape[1] + 16) * 2.0**-23
        return margin

    @cached_property
    def _index(self) -> Any:
        return flat_index(self.centroids, self.gpus)

    @cached_property
    def _exact(self) -> np.ndarray:
        return self.centroids.astype(np.float64)

    @cached_property
    def _lengths(self) -> np.ndarray:
        length = np.linalg.norm(self._exact, axis=1)
        return np.where(length > 0, length, 1.0)

    def __getstate__(self) -> dict[str, Any]:
        # Values computed on first use are not pickled: an index cannot be.
        own = ("features", "centroids", "gpus")
        return {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class GatherPiece:
    """Collects the training rows of one piece and finds unusable rows."""

    features: Features

    def __call__(self, argument: tuple[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Gather from a piece.

        Args:
            argument: number of the piece, and (n,) bool: which of its rows to return.

        Returns:
            These rows at unit length, (m, D) float32, and the indices of unusable rows.
        """
        piece, wanted = argument
        rows: list[np.ndarray] = [np.empty((0, self.features.dimension), np.float32)]
        broken: list[np.ndarray] = [np.empty(0, np.int64)]
        start = 0
        for block in self.features.blocks(piece):
            usable = usable_rows(block)
            if not usable.all():
                broken.append(start + np.flatnonzero(~usable))
            take = wanted[start : start + len(block)]
            if take.any():
                rows.append(unit_rows(block[take]))
            start += len(block)
        return np.concatenate(rows), np.concatenate(broken)


def unit_rows(block: np.ndarray) -> np.ndarray:
    """Scale rows to unit length, (n, D) float32; lengths are computed in float64."""
    exact = block.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact /= np.sqrt(np.einsum("ij,ij->i", exact, exact))[:, None]
    return exact.astype(np.float32)
