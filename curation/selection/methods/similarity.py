"""Cosine similarities between images, exact enough that identical images tie.

Inner products of float16 values are exact in double precision, in any order of summation (see
``curation.selection.assignment``), and the result is rounded to twelve decimals: the same two
images have the same similarity in every block, and identical images tie.
"""

from typing import Protocol

import numpy as np
from pydantic import Field

from echostill.platform.config import Config

DECIMALS = 12
GRAM_ROWS = 6000  # up to this size all pairs are stored: 8 n^2 bytes, 288 MB
CHUNK = 512


class GraphSettings(Config):
    """The graph of nearest neighbours for facility-location and d2."""

    neighbours: int = Field(16, ge=1, description="Nearest neighbours of each image.")
    gamma: float = Field(
        1.0, ge=0, description="d2: how fast a choice's discount on its neighbours fades with "
        "their distance.",
    )  # fmt: skip


class HasGraph(Protocol):
    """Settings that have the keys of the graph."""

    @property
    def graph(self) -> GraphSettings:
        """The keys."""
        ...


class Similarity:
    """Similarities among the rows of one block."""

    def __init__(self, features: np.ndarray) -> None:
        """Prepare the features.

        Args:
            features: (n, D) of any float type and length.
        """
        self._exact = features.astype(np.float64)
        self._scale = 1.0 / np.sqrt(np.einsum("ij,ij->i", self._exact, self._exact))
        self._gram = self.rows(0, len(features)) if len(features) <= GRAM_ROWS else None

    def __len__(self) -> int:
        return len(self._scale)

    @property
    def unit(self) -> np.ndarray:
        """(n, D) float64 features of unit length."""
        unit: np.ndarray = self._exact * self._scale[:, None]
        return unit

    def row(self, number: int) -> np.ndarray:
        """Return the similarity of every row to one of them, (n,) float64."""
        row: np.ndarray
        if self._gram is not None:
            row = self._gram[number]
        else:
            product = self._exact @ self._exact[number]
            row = np.round(product * self._scale * self._scale[number], DECIMALS)
        return row

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return the similarities of a run of rows to every row, (stop - start, n) float64."""
        product = self._exact[start:stop] @ self._exact.T
        product *= self._scale
        product *= self._scale[start:stop, None]
        return np.round(product, DECIMALS, out=product)


def nearest_neighbours(features: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Find each row's nearest rows by cosine, without itself; ties go to the smaller row.

    Args:
        features: (n, D).
        neighbours: how many to return, at most n - 1.

    Returns:
        Rows (n, m) int64 and similarities (n, m) float64, nearest first.
    """
    similarity = Similarity(features)
    total = len(similarity)
    count = min(neighbours, total - 1)
    found = np.empty((total, count), dtype=np.int64)
    values = np.empty((total, count), dtype=np.float64)
    if count == 0:
        return found, values
    for start in range(0, total, CHUNK):
        stop = min(start + CHUNK, total)
        block = similarity.rows(start, stop)
        block[np.arange(stop - start), np.arange(start, stop)] = -np.inf
        last = -np.partition(-block, count - 1, axis=1)[:, count - 1]
        kept = block >= last[:, None]
        for row in np.flatnonzero(kept.sum(axis=1) > count):  # ties at the end of the list
            tied = np.flatnonzero(block[row] == last[row])
            surplus = int(kept[row].sum()) - count
            kept[row, tied[-surplus:]] = False
        columns = np.nonzero(kept)[1].reshape(stop - start, count)
        picked = np.take_along_axis(block, columns, axis=1)
        nearest = np.argsort(-picked, axis=1, kind="stable")
        found[start:stop] = np.take_along_axis(columns, nearest, axis=1)
        values[start:stop] = np.take_along_axis(picked, nearest, axis=1)
    return found, values
