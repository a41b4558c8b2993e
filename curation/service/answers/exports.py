"""A coreset as one file, generated piece by piece."""

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from echostill.curation.service.data.coresets import Coreset
from echostill.curation.service.data.pages import SampleFinder, SampleQuery
from echostill.curation.service.data.state import State

MEDIA_TYPES = {
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/x-ndjson",
}
POOL_COLUMNS = ("source", "organ", "device", "label", "frame")
ROWS_PER_PIECE = 65_536


def export_pieces(
    state: State, finder: SampleFinder, name: str, query: SampleQuery, format: str
) -> Iterator[bytes]:
    """Return the pieces of a file with the samples of a coreset that match a query.

    Args:
        state: the mapped store.
        finder: finds the rows.
        name: of the coreset.
        query: which samples.
        format: ``parquet``, ``csv`` or ``jsonl``.

    Raises:
        Problem: No such coreset.
    """
    coreset = state.coreset(name)
    return _encoded(coreset, finder.find(coreset, query), format)


def _encoded(coreset: Coreset, positions: np.ndarray, format: str) -> Iterator[bytes]:
    """The coreset's columns, then the pool's source, organ and so on."""
    if format == "jsonl":
        for piece in _pieces(coreset, positions):
            lines = [json.dumps(_finite(row), ensure_ascii=False) for row in piece.to_pylist()]
            yield ("\n".join(lines) + "\n").encode() if lines else b""
        return
    sink = _Sink()
    schema = _piece(coreset, positions[:0]).schema
    parquet = format == "parquet"
    with (
        pq.ParquetWriter(sink, schema, compression="zstd")
        if parquet
        else pa_csv.CSVWriter(sink, schema)
    ) as writer:
        for piece in _pieces(coreset, positions):
            writer.write_table(piece)
            yield sink.taken()
    yield sink.taken()


def _pieces(coreset: Coreset, positions: np.ndarray) -> Iterator[pa.Table]:
    for start in range(0, max(1, len(positions)), ROWS_PER_PIECE):
        yield _piece(coreset, positions[start : start + ROWS_PER_PIECE])


def _piece(coreset: Coreset, positions: np.ndarray) -> pa.Table:
    own = coreset.table.select(coreset.own_columns).take(pa.array(positions))
    rows = pa.array(coreset.rows[positions])
    origin = coreset.catalogue.table.select(list(POOL_COLUMNS)).take(rows)
    for name in POOL_COLUMNS:
        column = origin[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        own = own.append_column(name, column)
    return own.replace_schema_metadata(None)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and value - value != 0 else value
        for key, value in row.items()
    }


class _Sink(io.RawIOBase):
    """A file in memory that hands over what was written since the last call."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._buffer += data
        self._written += size
        return size

    def tell(self) -> int:
        return self._written

    def taken(self) -> bytes:
        """Return what was written and clear the buffer."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data
