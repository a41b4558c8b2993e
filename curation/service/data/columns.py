"""Tables as memory-mapped Arrow files: opened in a millisecond, loaded page by page when read."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from echostill.platform.errors import EchostillError
from echostill.platform.tables.atomic import atomic_write


def write_columns(path: Path, table: pa.Table) -> None:
    """Write a table as one uncompressed record batch, so that each column is contiguous memory.

    The file gets its name only when it is complete; two threads or processes may write it at the
    same time.
    """
    table = _plain(table).combine_chunks()
    batches = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
    if len(batches) != 1:
        raise EchostillError(f"'{path}' would have {len(batches)} pieces; expected one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_write(path) as partial,
        pa.OSFile(str(partial), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_batch(batches[0])


def open_columns(path: Path) -> pa.Table:
    """Map a table that :func:`write_columns` wrote; nothing is read yet."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def whole(column: pa.ChunkedArray) -> pa.Array:
    """View a column as one array; only one of several pieces is copied."""
    if column.num_chunks == 1:
        return column.chunk(0)  # which `combine_chunks` would copy: 12 MB of 3M numbers
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):
        return combined.chunk(0) if combined.num_chunks else pa.array([], type=column.type)
    return combined


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """View a column of numbers or booleans; nulls become NaN.

    Returns:
        (N,) the mapped memory itself, unless the column has nulls or is boolean.
    """
    array = whole(column)
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """View a dictionary-encoded column of texts.

    Returns:
        (N,) integers and the texts that they stand for.
    """
    array = whole(column)
    return array.indices.to_numpy(), array.dictionary.to_pylist()


class SortedTexts:
    """A sorted column of texts, searched by bisection in the mapped bytes.

    A Python dictionary of three million ids would take half a gigabyte and ten seconds to build.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = whole(column)
        _, offsets, data = array.buffers()
        self._offsets = np.frombuffer(offsets, dtype=np.int64)[array.offset :]
        self._data = memoryview(data) if data is not None else memoryview(b"")
        self._size = len(array)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, row: int) -> str:
        return bytes(self._at(row)).decode()

    def find(self, text: str) -> int | None:
        """Return the row of a text, or None."""
        wanted = text.encode("utf-8", "surrogatepass")
        row = self._first_not_below(wanted)
        return row if row < self._size and bytes(self._at(row)) == wanted else None

    def with_prefix(self, prefix: str) -> range:
        """Return the rows whose text begins with a prefix."""
        low = self._first_not_below(prefix.encode())
        return range(low, self._first_not_below(prefix.encode() + b"\xff"))

    def _at(self, row: int) -> memoryview:
        return self._data[self._offsets[row] : self._offsets[row + 1]]

    def _first_not_below(self, wanted: bytes) -> int:
        low, high = 0, self._size
        while low < high:
            middle = (low + high) // 2
            if bytes(self._at(middle)) < wanted:
                low = middle + 1
            else:
                high = middle
        return low


def _plain(table: pa.Table) -> pa.Table:
    """Texts with 64-bit offsets: 3M reasons of a hundred characters have nearly 2^31 bytes."""
    fields = [
        field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))
