"""The answer to a query as a file: it is written while it is read, whatever its size."""

import io
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.atomic import atomic_write
from echostill.platform.tables.storage import file_in

# As a limit of rows; the largest whole number that all of JSON's readers keep.
EVERY_ROW = 2**53 - 1
ROWS_PER_WRITE = 2**17  # a row group of Parquet; the answer comes in smaller pieces
BYTES_PER_WRITE = 2**25

Pieces = Generator[bytes, None, None]
Writer = AbstractContextManager[Any]


def _parquet_writer(file: IO[bytes], schema: pa.Schema) -> Writer:
    import pyarrow.parquet as pq

    writer: Writer = pq.ParquetWriter(file, schema, compression="zstd")
    return writer


def _csv_writer(file: IO[bytes], schema: pa.Schema) -> Writer:
    import pyarrow.csv as pa_csv

    writer: Writer = pa_csv.CSVWriter(file, schema)
    return writer


FORMATS: dict[str, Callable[[IO[bytes], pa.Schema], Writer]] = {
    ".parquet": _parquet_writer,
    ".arrow": pa.ipc.new_file,
    ".csv": _csv_writer,
}


class AnswerStream:
    """The batches of a query's Arrow stream.

    Attributes:
        schema: Its columns.
        truncated: Whether rows were cut off; known at the end.
    """

    def __init__(self, source: Any) -> None:
        self._reader = pa.ipc.open_stream(source)
        self.schema: pa.Schema = self._reader.schema
        self.truncated = False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches.

        Raises:
            EchostillError: The query failed while it was being answered.
        """
        while True:
            try:
                batch, metadata = self._reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                return
            if metadata is not None and b"error" in metadata:
                raise EchostillError(metadata[b"error"].decode())
            if metadata is not None and b"truncated" in metadata:
                self.truncated = metadata[b"truncated"] == b"true"
            yield batch


def check_answer_file(path: str, *, overwrite: bool = False) -> None:
    """Check, before a query runs, that its answer may be written to a file.

    Raises:
        UsageError: The name has another ending, or something is there.
    """
    if Path(path).suffix.lower() not in FORMATS:
        raise UsageError(f"'{path}': the name must end in {', '.join(FORMATS)}.")
    folder, name = file_in(path)
    if folder.exists(name) and (folder.size(name) is None or not overwrite):
        if folder.size(name) is None:
            raise UsageError(f"'{path}' is a folder: give the name of a file.")
        raise UsageError(f"'{path}' exists: give another name, or --overwrite to replace it.")


def write_answer(path: str, pieces: Pieces) -> int:
    """Write the answer to a query to a local path or a URI.

    The file appears when it is complete; a local one is never in memory as a whole.

    Args:
        path: A name that ends as one of :data:`FORMATS`.
        pieces: The bytes of its Arrow stream; closed at the end.

    Returns:
        The number of rows.

    Raises:
        EchostillError: The query failed while it was being answered.
        UsageError: A column does not fit into the format.
    """
    folder, name = file_in(path)
    ending = Path(name).suffix.lower()
    with closing(pieces):
        if not folder.is_local:
            with tempfile.TemporaryDirectory() as own:
                file = Path(own) / "answer"
                rows = _write(file, ending, pieces)
                folder.write(name, file.read_bytes())
                return rows
        target = Path(folder.local_path(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as partial:
            return _write(partial, ending, pieces)


def _write(path: Path, ending: str, pieces: Iterator[bytes]) -> int:
    try:
        return _write_rows(path, ending, pieces)
    except pa.ArrowNotImplementedError as error:
        raise UsageError(
            f"the answer does not fit into {ending}: {error}. Cast the column to text in the "
            "query, or leave it out."
        ) from None


def _write_rows(path: Path, ending: str, pieces: Iterator[bytes]) -> int:
    stream = AnswerStream(io.BufferedReader(_PiecesFile(pieces)))
    if ending == ".csv":
        _check_flat(stream.schema)
    rows = 0
    with path.open("wb") as file, FORMATS[ending](file, stream.schema) as writer:
        for table in _gathered(stream):
            writer.write_table(table)
            rows += table.num_rows
    return rows


def _check_flat(schema: pa.Schema) -> None:
    for field in schema:
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            raise UsageError(
                f"the column '{field.name}' ({field.type}) does not fit into CSV: leave it out of "
                "the query, or write .parquet or .arrow."
            )


def _gathered(stream: AnswerStream) -> Iterator[pa.Table]:
    """Yield tables that are large enough to be row groups."""
    waiting: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in stream:
        waiting.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= ROWS_PER_WRITE or size >= BYTES_PER_WRITE:
            yield pa.Table.from_batches(waiting, stream.schema)
            waiting, rows, size = [], 0, 0
    if rows:
        yield pa.Table.from_batches(waiting, stream.schema)


class _PiecesFile(io.RawIOBase):
    """Pieces of bytes as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
