"""Features by row, for the methods that compare images with each other.

They are stored in float16, cluster after cluster, so that a cluster is one run of rows: in memory
if they fit, otherwise in a memory-mapped temporary file that is deleted after the selection.
"""

import tempfile
from dataclasses import dataclass

import numpy as np

from echostill.curation.selection.features import Features
from echostill.platform.memory import available_memory
from echostill.platform.ray_tasks import TaskPool

MEMORY_SHARE = 0.4  # of the free memory; methods and tables need the rest


@dataclass(frozen=True)
class FeatureRows:
    """N features, by position in the order of the ids.

    Attributes:
        array: (N, D), as stored.
        stored: (N,) row of ``array`` that holds each position.
    """

    array: np.ndarray
    stored: np.ndarray

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the features of some positions, (n, D), a copy."""
        rows: np.ndarray = self.array[self.stored[positions]]
        return rows


def fits_in_memory(rows: int, dimension: int) -> bool:
    """Return whether this many float16 features are kept in memory."""
    return rows * dimension * 2 <= MEMORY_SHARE * available_memory()


def load_rows(
    features: Features, place: np.ndarray, cluster: np.ndarray, tasks: TaskPool, scratch: str | None
) -> FeatureRows:
    """Read all features once.

    Args:
        features: N rows in any order.
        place: (N,) position in the order of the ids of each row of ``features``.
        cluster: (N,) cluster of each position.
        tasks: whose threads read; Ray workers would have to send all of it.
        scratch: folder of the temporary file; None is the system's.
    """
    rows, dimension = len(place), features.dimension
    stored = np.empty(rows, dtype=np.int64)
    stored[np.argsort(cluster, kind="stable")] = np.arange(rows)
    kind = next((block.dtype for block in features.blocks(0)), np.dtype(np.float16))
    array: np.ndarray
    if fits_in_memory(rows, dimension * kind.itemsize // 2):
        array = np.empty((rows, dimension), dtype=kind)
    else:
        file = tempfile.TemporaryFile(dir=scratch, prefix="echostill-features-")  # noqa: SIM115
        array = np.memmap(file, dtype=kind, mode="w+", shape=(rows, dimension))
    edges = np.concatenate([[0], np.cumsum(features.counts)])

    def read(piece: int) -> None:
        start = int(edges[piece])
        for block in features.blocks(piece):
            array[stored[place[start : start + len(block)]]] = block
            start += len(block)

    for _ in TaskPool(threads=tasks.threads).map(read, range(len(edges) - 1)):
        pass
    return FeatureRows(array, stored)
