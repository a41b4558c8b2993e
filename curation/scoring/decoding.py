"""Decoding of staged images to the square inputs of models: the CPU's work before a model.

A batch keeps a slot for every row, in the pool's order, even if an image cannot be decoded: its
slot is then black, and its scores are discarded. A row's scores therefore depend neither on its
neighbours nor on whether they could be decoded, and a row can be scored again separately.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from echostill.platform.imaging.images import DecodeError, decode_staged, to_square
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table

COLUMNS = ("image_id", "image")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """Rows of the pool, decoded.

    ``slots`` are the requested ones. ``squares`` maps a side length in pixels to uint8
    (N, C, side, side); C is 1 if all images are grey. ``errors`` maps a slot to the class and the
    message of its error.
    """

    ids: list[str]
    slots: Sequence[int]
    squares: dict[int, np.ndarray]
    errors: dict[int, tuple[str, str]]


@dataclass(frozen=True)
class PartDecoder:
    """Decodes rows of one part of the pool; picklable."""

    pool: Storage
    sizes: tuple[int, ...]
    batch_size: int

    def batches(
        self, payload: Sequence[str | int], only: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Decode a shard batch by batch.

        Args:
            payload: Name of the part, first row and row after the last.
            only: Requested slots, counted from the first row; other slots stay black, and batches
                without a requested slot are left out.
        """
        return self.decoded(self.rows(payload), only)

    def rows(self, payload: Sequence[str | int]) -> pa.Table:
        """Read the rows of a shard, their images still encoded."""
        name, start, stop = str(payload[0]), int(payload[1]), int(payload[2])
        return Table(self.pool, {}).read_rows(name, start, stop, COLUMNS)

    def decoded(self, rows: pa.Table, only: Sequence[int] | None = None) -> Iterator[Batch]:
        """Decode rows batch by batch; ``only`` as in :meth:`batches`."""
        wanted = None if only is None else set(only)
        for first in range(0, rows.num_rows, self.batch_size):
            piece = rows.slice(first, self.batch_size)
            slots: Sequence[int] = range(piece.num_rows)
            if wanted is not None:
                slots = [slot for slot in slots if first + slot in wanted]
            if slots:
                yield self._decode(piece, slots)

    def _decode(self, piece: pa.Table, slots: Sequence[int]) -> Batch:
        images = piece["image"].combine_chunks()
        pictures: dict[int, np.ndarray] = {}
        errors = {}
        for slot in slots:
            try:
                pictures[slot] = decode_staged(images[slot].as_py())
            except DecodeError as error:
                errors[slot] = (type(error).__name__, f"the staged image {error}")
        channels = 3 if any(picture.ndim == 3 for picture in pictures.values()) else 1
        squares = {}
        for size in self.sizes:
            square = np.zeros((piece.num_rows, channels, size, size), dtype=np.uint8)
            for slot, picture in pictures.items():
                square[slot] = to_square(picture, size)[:channels]
            squares[size] = square
        return Batch(piece["image_id"].to_pylist(), slots, squares, errors)


def shards(pool: Table, rows_per_shard: int) -> list[list[str | int]]:
    """Divide the pool's parts into shards: name of the part, first row, row after the last."""
    return [
        [part["file"], start, min(start + rows_per_shard, part["rows"])]
        for part in pool.manifest["parts"]
        for start in range(0, max(part["rows"], 1), rows_per_shard)
    ]


def ahead(items: Iterator[Item], depth: int = 1) -> Iterator[Item]:
    """Make the next items in a separate thread while the last one is used.

    Args:
        items: What makes them.
        depth: Items that may be ready, or in the making, before they are asked for.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="echostill-ahead") as pool:
        following: deque[Future[Item | None]] = deque()
        for _ in range(depth):
            following.append(pool.submit(next, items, None))
        while (item := following.popleft().result()) is not None:
            following.append(pool.submit(next, items, None))
            yield item
