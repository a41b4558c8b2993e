"""Thumbnails, made from the pool's staged pixels on request."""

import io
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from echostill.platform.errors import EchostillError
from echostill.platform.tables.table import Table

if TYPE_CHECKING:  # most questions show no picture
    import pyarrow.parquet as pq

CACHE_BYTES = 64 * 2**20
OPEN_FILES = 64
ROWS_PER_READ = 64  # a row group may hold gigabytes of pixels
QUALITY = 88
MEDIA_TYPES = {"jpeg": "image/jpeg", "png": "image/png"}


class Thumbnails:
    """Reads pictures from the pool's parts without scanning them. Thread-safe."""

    def __init__(self, pool: Table, cache_bytes: int = CACHE_BYTES) -> None:
        self._pool = pool
        self._parts = pool.part_names
        self._cache: OrderedDict[tuple[int, int, int, str], bytes] = OrderedDict()
        self._cache_bytes, self._size = cache_bytes, 0
        self._footers: OrderedDict[int, pq.FileMetaData] = OrderedDict()
        self._lock = threading.Lock()

    def picture(self, part: int, row: int, size: int, kind: str) -> bytes:
        """Return the picture of a row of a part.

        Args:
            part: number of the part.
            row: in the part.
            size: longest side in pixels; a smaller picture is not enlarged.
            kind: ``jpeg`` or ``png``.
        """
        from echostill.platform.imaging.images import decode_staged, encode_png, resize_longest

        key = (part, row, size, kind)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        pixels = resize_longest(decode_staged(self._staged(part, row)), size)
        data = encode_png(pixels) if kind == "png" else encode_jpeg(pixels)
        with self._lock:
            if key not in self._cache:
                self._cache[key] = data
                self._size += len(data)
            while self._size > self._cache_bytes:
                _, oldest = self._cache.popitem(last=False)
                self._size -= len(oldest)
        return data

    def _staged(self, part: int, row: int) -> bytes:
        import pyarrow.parquet as pq

        storage, name = self._pool.storage, self._parts[part]
        with (
            storage.filesystem.open_input_file(storage.arrow_path(name)) as source,
            pq.ParquetFile(source, metadata=self._footer(part)) as file,
        ):
            group, first = _group_of(file.metadata, row)
            wanted = row - first
            for batch in file.iter_batches(
                ROWS_PER_READ, row_groups=[group], columns=["image"], use_threads=False
            ):
                if wanted < batch.num_rows:
                    return bytes(batch.column(0)[wanted].as_py())
                wanted -= batch.num_rows
        raise EchostillError(f"'{storage.locate(name)}' has no row {row}.")

    def _footer(self, part: int) -> "pq.FileMetaData":
        import pyarrow.parquet as pq

        with self._lock:
            if part in self._footers:
                self._footers.move_to_end(part)
                return self._footers[part]
        storage = self._pool.storage
        path = storage.arrow_path(self._parts[part])
        footer = pq.read_metadata(path, filesystem=storage.filesystem)
        with self._lock:
            self._footers[part] = footer
            while len(self._footers) > OPEN_FILES:
                self._footers.popitem(last=False)
        return footer


def _group_of(footer: "pq.FileMetaData", row: int) -> tuple[int, int]:
    """Return the row group that holds a row, and the group's first row."""
    first = 0
    for group in range(footer.num_row_groups):
        count = footer.row_group(group).num_rows
        if row < first + count:
            return group, first
        first += count
    raise EchostillError(f"the part has {first} rows, not {row + 1}: the pool was replaced.")


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encode (H, W) or (H, W, 3) uint8 pixels for display."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format="JPEG", quality=QUALITY)
    return sink.getvalue()
