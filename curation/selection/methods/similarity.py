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
FEW = 0.25  # share of the rows below which they are computed one by one


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

    def __init__(self, features: np.ndarray, wanted: int | None = None) -> None:
        """Prepare the features.

        Args:
            features: (n, D) of any float type and length.
            wanted: how many rows' similarities will be asked for; None for all or unknown.
        """
        self._exact = features.astype(np.float64)
        self._scale = 1.0 / np.sqrt(np.einsum("ij,ij->i", self._exact, self._exact))
        total = len(features)
        few = wanted is not None and wanted < total * FEW
        self._gram = self.rows(0, total) if total <= GRAM_ROWS and not few else None
        self._rough: np.ndarray | None = None
        if self._gram is None and np.isfinite(self._scale).all():
            self._rough = self.unit.astype(np.float32)
        # What float32 may be off by: Higham 2002, equation 3.5, for rows of unit length, and the
        # rounding of the elements and of the result.
        self._off = (features.shape[1] + 4) * 2.0**-24 * 1.01 + 10.0**-DECIMALS

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

    def raise_to(self, number: int, least: np.ndarray) -> None:
        """Raise values to the similarity to one row, where that is larger; in place.

        Only rows that can be raised, as float32 tells, are computed exactly.

        Args:
            number: the row.
            least: (n,) float64.
        """
        if self._rough is None:
            np.maximum(least, self.row(number), out=least)
            return
        near = np.flatnonzero(self._rough @ self._rough[number] > least - self._off)
        if len(near) > len(self) * FEW:
            np.maximum(least, self.row(number), out=least)
            return
        product = self._exact[near] @ self._exact[number]
        exact = np.round(product * self._scale[near] * self._scale[number], DECIMALS)
        least[near] = np.maximum(least[near], exact)

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
