"""Features of the pool, read piece by piece, because a pool may be larger than memory.

A piece is a run of rows that one thread or worker reads: a slice of an array, a chunk of a column
in memory, or some row groups of a Parquet part.

Methods that compare images with each other need them by row. For those the features are stored in
float16, cluster after cluster, so that a cluster is one run of rows: in memory if they fit,
otherwise in a memory-mapped temporary file that is deleted after the selection.
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np
import pyarrow as pa

from echostill.platform.errors import UsageError
from echostill.platform.memory import available_memory
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.tables.table import Table

ROWS_PER_BLOCK = 1024  # small enough for the allocator to reuse the memory without mapping pages
ROWS_PER_PIECE = 65_536  # with larger pieces, threads would be idle at the end
MEMORY_SHARE = 0.4  # of the free memory; methods and tables need the rest
FEATURE = "feature"


class Features(Protocol):
    """A matrix of features (N, D), read by pieces. Must be picklable, to be sent to workers."""

    @property
    def dimension(self) -> int:
        """D."""
        ...

    @property
    def counts(self) -> list[int]:
        """Rows of each piece, in order; they sum to N."""
        ...

    def blocks(self, piece: int) -> Iterator[np.ndarray]:
        """Read a piece as blocks (n, D), n at most ``ROWS_PER_BLOCK``, of the source's own type."""
        ...


@dataclass(frozen=True)
class ArrayFeatures:
    """Features of an array in memory (or mapped to it), (N, D)."""

    array: np.ndarray

    @property
    def dimension(self) -> int:
        """D."""
        return int(self.array.shape[1])

    @property
    def counts(self) -> list[int]:
        """Rows of each piece."""
        edges = [*range(0, len(self.array), ROWS_PER_PIECE), len(self.array)]
        return [stop - start for start, stop in pairwise(edges)]

    def blocks(self, piece: int) -> Iterator[np.ndarray]:
        """Read a piece."""
        first = piece * ROWS_PER_PIECE
        last = min(first + ROWS_PER_PIECE, len(self.array))
        for start in range(first, last, ROWS_PER_BLOCK):
            yield self.array[start : min(start + ROWS_PER_BLOCK, last)]


@dataclass(frozen=True)
class ColumnFeatures:
    """Features of a fixed-size-list column in memory."""

    column: pa.ChunkedArray

    @property
    def dimension(self) -> int:
        """D."""
        return _dimension(self.column.type)

    @property
    def counts(self) -> list[int]:
        """Rows of each chunk."""
        return [len(chunk) for chunk in self.column.chunks]

    def blocks(self, piece: int) -> Iterator[np.ndarray]:
        """Read a chunk."""
        chunk = self.column.chunk(piece)
        for start in range(0, len(chunk), ROWS_PER_BLOCK):
            yield _matrix(chunk.slice(start, ROWS_PER_BLOCK))


@dataclass(frozen=True)
class TableFeatures:
    """Features of a scores table on disk or in an object store."""

    table: Table

    @cached_property
    def dimension(self) -> int:
        """D."""
        kind = dict(self.table.manifest["schema"]).get(FEATURE, "missing")
        if not kind.startswith("fixed_size_list"):
            raise UsageError(_wrong_type(kind))
        return int(kind.rpartition("[")[2].rstrip("]"))

    @property
    def counts(self) -> list[int]:
        """Rows of each piece."""
        return [rows for _, _, rows in self._pieces]

    def blocks(self, piece: int) -> Iterator[np.ndarray]:
        """Read a piece."""
        name, groups, _ = self._pieces[piece]
        for batch in self.table.batches(name, [FEATURE], ROWS_PER_BLOCK, groups):
            yield _matrix(batch.column(0))

    @cached_property
    def _pieces(self) -> list[tuple[str, list[int] | None, int]]:
        """Part, its row groups (None: all) and their rows: large parts are divided."""
        pieces: list[tuple[str, list[int] | None, int]] = []
        for part in self.table.manifest["parts"]:
            if part["rows"] <= ROWS_PER_PIECE:
                pieces.append((part["file"], None, part["rows"]))
                continue
            groups: list[int] = []
            rows = 0
            counts = self.table.row_groups(part["file"])
            for number, count in enumerate(counts):
                groups.append(number)
                rows += count
                if rows >= ROWS_PER_PIECE or number == len(counts) - 1:
                    pieces.append((part["file"], groups, rows))
                    groups, rows = [], 0
        return pieces


def all_blocks(features: Features) -> Iterator[np.ndarray]:
    """Read all pieces in order, as blocks (n, D)."""
    for piece in range(len(features.counts)):
        yield from features.blocks(piece)


def joined(blocks: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Join blocks to larger ones.

    Args:
        blocks: (n, D) each.
        rows: Rows wanted.

    Yields:
        (rows, D), and at the end what is left.
    """
    held: list[np.ndarray] = []
    count = 0
    for block in blocks:
        start = 0
        while count + len(block) - start >= rows:
            stop = start + rows - count
            yield np.concatenate([*held, block[start:stop]])
            held, count, start = [], 0, stop
        if start < len(block):
            held.append(block[start:])
            count += len(block) - start
    if held:
        yield np.concatenate(held)


def matrix_of(features: Features, order: np.ndarray) -> np.ndarray:
    """Read features as a whole, rows in the given order.

    Args:
        features: N rows.
        order: (N,) row numbers in the order of the result.

    Returns:
        (N, D) in the features' own type: float16 stays float16.
    """
    place = inverse(order)
    matrix: np.ndarray | None = None
    start = 0
    for block in all_blocks(features):
        if matrix is None:
            matrix = np.empty((len(order), features.dimension), dtype=block.dtype)
        matrix[place[start : start + len(block)]] = block
        start += len(block)
    return np.empty((0, features.dimension), np.float16) if matrix is None else matrix


@dataclass(frozen=True)
class FeatureRows:
    """N features, by position in the order of the ids.

    Attributes:
        array: (N, D), as stored.
        stored: (N,) row of ``array`` that holds each position.
    """

    array: np.ndarray
    stored: np.ndarray

    @cached_property
    def mean(self) -> np.ndarray:
        """Mean of all rows, (D,) float64; sums of halves are exact."""
        total = np.zeros(self.array.shape[1])
        for start in range(0, len(self.array), ROWS_PER_PIECE):
            total += self.array[start : start + ROWS_PER_PIECE].sum(axis=0, dtype=np.float64)
        return total / max(len(self.array), 1)

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


def inverse(order: np.ndarray) -> np.ndarray:
    """Invert a permutation: the position of each row, (N,) int64."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return place


def usable_rows(block: np.ndarray) -> np.ndarray:
    """Return which rows are finite and not zero, (n,) bool, of (n, D) of any float type."""
    usable: np.ndarray
    if block.dtype == np.float16 and block.flags.c_contiguous:
        # Without the sign bit, float16 bits increase with the value; from 0x7c00 it is not finite.
        largest = (block.view(np.uint16) & np.uint16(0x7FFF)).max(axis=1)
        usable = (largest > 0) & (largest < 0x7C00)
    else:
        usable = np.isfinite(block).all(axis=1) & (block != 0).any(axis=1)
    return usable


def _dimension(kind: pa.DataType) -> int:
    if not pa.types.is_fixed_size_list(kind):
        raise UsageError(_wrong_type(str(kind)))
    return int(kind.list_size)


def _matrix(lists: pa.Array) -> np.ndarray:
    dimension = _dimension(lists.type)
    values = lists.flatten()
    if lists.null_count or values.null_count:
        raise UsageError("column 'feature' has nulls. Run `echostill score` again.")
    matrix: np.ndarray = values.to_numpy().reshape(len(lists), dimension)
    return matrix


def _wrong_type(kind: str) -> str:
    return (
        f"column 'feature' is {kind}; expected fixed-size lists of float16. Run `echostill score` "
        "again."
    )
