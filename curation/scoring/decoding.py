"""Decoding of staged images to the square inputs of models: the CPU's work before a model.

A batch keeps a slot for every row, in the pool's order, even if an image cannot be decoded: its
slot is then black, and its scores are discarded. A row's scores therefore depend neither on its
neighbours nor on whether they could be decoded, and a row can be scored again separately.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from echostill.platform.imaging.images import DecodeError, decode_staged, to_square
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table

COLUMNS = ("image_id", "image")


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

    def __call__(self, payload: Sequence[str | int]) -> bytes:
        """Decode a shard ahead of its scoring, into bytes that :func:`unpack` reads."""
        return pack(self.batches(payload))

    def batches(
        self, payload: Sequence[str | int], only: Sequence[int] | None = None
    ) -> Iterator[Batch]:
        """Decode a shard batch by batch.

        Args:
            payload: Name of the part, first row and row after the last.
            only: Requested slots, counted from the first row; other slots stay black, and batches
                without a requested slot are left out.
        """
        name, start, stop = str(payload[0]), int(payload[1]), int(payload[2])
        rows = Table(self.pool, {}).read_rows(name, start, stop, COLUMNS)
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


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Decode the next batch in a separate thread while the last one is scored."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


def pack(batches: Iterator[Batch]) -> bytes:
    """Serialise batches as one Arrow stream, to pass them between tasks."""
    sink = pa.BufferOutputStream()
    writer = None
    for batch in batches:
        errors = [batch.errors.get(slot, ("", "")) for slot in range(len(batch.ids))]
        columns = {
            "image_id": pa.array(batch.ids, pa.string()),
            "error_class": pa.array([kind for kind, _ in errors], pa.string()),
            "message": pa.array([message for _, message in errors], pa.string()),
        }
        for size, square in batch.squares.items():
            pixels = [row.tobytes() for row in square]
            columns[str(size)] = pa.array(pixels, pa.large_binary())
        packed = pa.record_batch(columns)
        if writer is None:
            writer = pa.ipc.new_stream(sink, packed.schema)
        writer.write_batch(packed)
    if writer is None:
        return b""
    writer.close()
    return bytes(sink.getvalue())


def unpack(data: bytes) -> Iterator[Batch]:
    """Read the result of :func:`pack`."""
    if not data:
        return
    for packed in pa.ipc.open_stream(pa.py_buffer(data)):
        squares = {}
        for column, name in enumerate(packed.schema.names[3:], start=3):
            side = int(name)
            pixels = [np.frombuffer(value.as_buffer(), np.uint8) for value in packed.column(column)]
            squares[side] = np.stack(pixels).reshape(len(pixels), -1, side, side)
        kinds, messages = packed["error_class"].to_pylist(), packed["message"].to_pylist()
        errors = {slot: (kind, messages[slot]) for slot, kind in enumerate(kinds) if kind}
        yield Batch(packed["image_id"].to_pylist(), range(packed.num_rows), squares, errors)
