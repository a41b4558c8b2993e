"""Rows of mapped columns as plain values.

Arrow's ``take`` and ``to_pylist`` cost tens of microseconds a column and make an object of each
value on the way; a page of fifty samples has twenty columns.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from echostill.curation.service.data.columns import whole

Read = Callable[[np.ndarray], list[Any]]


class RowReader:
    """Reads rows of some columns of a mapped table, as ``pyarrow.Table.to_pylist`` would."""

    def __init__(self, table: pa.Table, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._reads = [_reader(whole(table[name])) for name in names]
        floating = [pa.types.is_floating(table.schema.field(name).type) for name in names]
        self._floating = [index for index, found in enumerate(floating) if found]

    def columns(self, rows: np.ndarray) -> list[list[Any]]:
        """Return the values of each column.

        Args:
            rows: (n,) row numbers, not negative.
        """
        return [read(rows) for read in self._reads]

    def json_columns(self, rows: np.ndarray) -> list[list[Any]]:
        """The same for JSON: None in place of NaN and infinities."""
        found = self.columns(rows)
        for index in self._floating:
            found[index] = [
                value if value is not None and math.isfinite(value) else None
                for value in found[index]
            ]
        return found

    def row(self, row: int) -> dict[str, Any]:
        """Return one row."""
        columns = self.columns(np.array([row]))
        return {name: values[0] for name, values in zip(self.names, columns, strict=True)}


def dictionaries(names: Sequence[str], columns: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Turn columns into rows."""
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _reader(array: pa.Array) -> Read:
    """How to read values of an array fastest."""
    kind = array.type
    if array.null_count or not len(array):
        return _any_reader(array)
    if pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind):
        return _number_reader(array.to_numpy())
    if pa.types.is_boolean(kind):
        return _bit_reader(array)
    if pa.types.is_large_string(kind):
        return _text_reader(array)
    if pa.types.is_dictionary(kind) and not array.dictionary.null_count:
        return _code_reader(array.indices.to_numpy(), array.dictionary.to_pylist())
    return _any_reader(array)


def _any_reader(array: pa.Array) -> Read:
    def read(rows: np.ndarray) -> list[Any]:
        found: list[Any] = array.take(pa.array(rows)).to_pylist()
        return found

    return read


def _number_reader(values: np.ndarray) -> Read:
    def read(rows: np.ndarray) -> list[Any]:
        found: list[Any] = values[rows].tolist()
        return found

    return read


def _bit_reader(array: pa.Array) -> Read:
    packed, offset = np.frombuffer(array.buffers()[1], dtype=np.uint8), array.offset

    def read(rows: np.ndarray) -> list[Any]:
        bit = rows.astype(np.int64) + offset
        found: list[Any] = ((packed[bit >> 3] >> (bit & 7)) & 1).astype(bool).tolist()
        return found

    return read


def _text_reader(array: pa.Array) -> Read:
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset :]
    text = memoryview(data) if data is not None else memoryview(b"")

    def read(rows: np.ndarray) -> list[Any]:
        row = rows.astype(np.int64)
        spans = zip(ends[row].tolist(), ends[row + 1].tolist(), strict=True)
        return [str(text[start:end], "utf-8") for start, end in spans]

    return read


def _code_reader(codes: np.ndarray, texts: list[Any]) -> Read:
    def read(rows: np.ndarray) -> list[Any]:
        return [texts[code] for code in codes[rows].tolist()]

    return read
