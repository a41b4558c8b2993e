"""Tables: Parquet parts with a manifest that is written last.

A table exists when its ``manifest.json`` does. The manifest names every part with its rows, size
and checksum, the schema, and the fingerprint of the run that made it.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.storage import Storage, sha256

if TYPE_CHECKING:
    import pyarrow.parquet as pq

MANIFEST = "manifest.json"
FORMAT_VERSION = 1  # of tables, runs and stores; raised when earlier releases could not read them
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 8192, 2**25


def encode_parquet(table: pa.Table) -> bytes:
    """Serialise a table; the same table always gives the same bytes."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    # Row groups are small enough to be read one at a time.
    rows = ROW_GROUP_BYTES * table.num_rows // max(table.nbytes, 1)
    size = max(min(rows, ROW_GROUP_ROWS), 256)
    pq.write_table(table, sink, row_group_size=size, **_options(table.schema))
    return sink.getvalue()


def encode_pieces(schema: pa.Schema, pieces: Iterable[pa.Table]) -> bytes:
    """Serialise a table of small rows that comes in pieces, to what the whole one would give."""
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, **_options(schema)) as writer:
        rest = schema.empty_table()
        for piece in pieces:
            rest = pa.concat_tables([rest, piece])
            while rest.num_rows > ROW_GROUP_ROWS:
                writer.write_table(rest[:ROW_GROUP_ROWS].combine_chunks())
                rest = rest[ROW_GROUP_ROWS:]
        writer.write_table(rest.combine_chunks())
    return sink.getvalue()


def _options(schema: pa.Schema) -> dict[str, Any]:
    # Pictures and lists of numbers repeat nothing: looking for repetitions in them is most of the
    # work.
    repeating = [field.name for field in schema if not _is_bulk(field.type)]
    return {"compression": "zstd", "store_schema": True, "use_dictionary": repeating}


def _is_bulk(kind: pa.DataType) -> bool:
    return bool(pa.types.is_nested(kind) or pa.types.is_large_binary(kind))


def decode_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a serialised table in the calling thread.

    Raises:
        pa.ArrowInvalid: The bytes are not Parquet.
    """
    with open_parquet(data) as file:
        return file.read(columns=list(columns) if columns is not None else None, use_threads=False)


def open_parquet(data: bytes) -> "pq.ParquetFile":
    """Open a serialised table, to be read in the calling thread.

    Arrow's own threads would share the Python-owned bytes; one that lets go of them while the
    interpreter shuts down aborts the process ("terminate called without an active exception").

    Raises:
        pa.ArrowInvalid: The bytes are not Parquet.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(pa.py_buffer(data), pre_buffer=False)


def check_format(where: str, values: dict[str, Any]) -> None:
    """Check that what a file describes is in a format that this release reads.

    Args:
        where: The file, for the message.
        values: What is in it.

    Raises:
        EchostillError: It was written by a later release; the message says what to do.
    """
    version = values.get("format_version")
    if type(version) is int and 1 <= version <= FORMAT_VERSION:
        return
    if type(version) is int and version > FORMAT_VERSION:
        code = values.get("written_by") or (values.get("fingerprint") or {}).get("code")
        by = f"echostill {code}" if code else "a later echostill"
        raise EchostillError(
            f"'{where}' has format {version}, written by {by}; this echostill reads formats up to "
            f"{FORMAT_VERSION}: upgrade echostill. Nothing was changed."
        )
    raise EchostillError(f"'{where}' has the unknown format {version!r}: echostill wrote no such.")


def part_record(name: str, rows: int, data: bytes) -> dict[str, Any]:
    """Return the manifest's entry for one part."""
    return {"file": name, "rows": rows, "bytes": len(data), "sha256": sha256(data)}


def digest_of_parts(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return a digest of a table's content: its parts' checksums in order."""
    return sha256("".join(part["sha256"] for part in parts).encode())


def write_manifest(
    storage: Storage,
    *,
    stage: str,
    schema: pa.Schema,
    parts: Sequence[dict[str, Any]],
    fingerprint: dict[str, Any],
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the manifest, which makes the table exist, and return it."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "stage": stage,
        "rows": sum(part["rows"] for part in parts),
        "schema": [[field.name, str(field.type)] for field in schema],
        "parts": list(parts),
        "fingerprint": fingerprint,
        **(extra or {}),
    }
    storage.write(MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest


def write_table(
    storage: Storage,
    table: pa.Table,
    *,
    stage: str,
    fingerprint: dict[str, Any],
    rows_per_part: int = 1_000_000,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a whole table as parts and then its manifest."""
    parts = []
    for index, start in enumerate(range(0, max(table.num_rows, 1), rows_per_part)):
        piece = table.slice(start, rows_per_part)
        data = encode_parquet(piece)
        name = f"part-{index:05d}.parquet"
        storage.write(name, data)
        parts.append(part_record(name, piece.num_rows, data))
    return write_manifest(
        storage, stage=stage, schema=table.schema, parts=parts, fingerprint=fingerprint, extra=extra
    )


class Table:
    """A finished table, read by parts or as a whole."""

    def __init__(self, storage: Storage, manifest: dict[str, Any]) -> None:
        self.storage = storage
        self.manifest = manifest

    @classmethod
    def open(cls, storage: Storage, made_by: str) -> "Table":
        """Open a finished table.

        Args:
            storage: The table's folder.
            made_by: The command that makes such a table, for the error message.

        Raises:
            UsageError: The table is missing or unfinished.
        """
        if not storage.exists(MANIFEST):
            state = "is not finished" if storage.exists() else "does not exist"
            raise UsageError(
                f"the table '{storage.root}' {state}: run `echostill {made_by}` first."
            )
        manifest = json.loads(storage.read(MANIFEST))
        check_format(storage.locate(MANIFEST), manifest)
        return cls(storage, manifest)

    @property
    def rows(self) -> int:
        """Number of rows over all parts."""
        return int(self.manifest["rows"])

    @property
    def digest(self) -> str:
        """A digest of the table's content: the parts' checksums in order."""
        return digest_of_parts(self.manifest["parts"])

    @property
    def part_names(self) -> list[str]:
        """The parts' file names in order."""
        return [part["file"] for part in self.manifest["parts"]]

    def read_part(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part."""
        import pyarrow.parquet as pq

        return pq.read_table(
            self.storage.arrow_path(name),
            columns=list(columns) if columns is not None else None,
            filesystem=self.storage.filesystem,
            partitioning=None,
        )

    def read_rows(
        self, name: str, start: int, stop: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Read the rows ``start`` to ``stop`` of one part, and not much around them."""
        wanted = list(columns) if columns is not None else None
        pieces, first = [], 0
        with self._parquet(name) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if first < stop and last > start:
                    rows = file.read_row_group(group, columns=wanted, use_threads=False)
                    pieces.append(
                        rows.slice(max(start - first, 0), min(stop, last) - max(start, first))
                    )
                first = last
            if not pieces:
                return file.read(columns=wanted, use_threads=False).slice(0, 0)
        return pa.concat_tables(pieces)

    def row_groups(self, name: str) -> list[int]:
        """Return the rows of each row group of one part, from its footer."""
        with self._parquet(name) as file:
            return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]

    def batches(
        self,
        name: str,
        columns: Sequence[str],
        rows: int,
        row_groups: Sequence[int] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """Read one part, or some of its row groups, in small pieces and in the calling thread.

        Args:
            name: The part.
            columns: The columns wanted.
            rows: Rows of a piece, at most.
            row_groups: Numbers of the row groups wanted; None for all.
        """
        with self._parquet(name) as file:
            yield from file.iter_batches(
                batch_size=rows, columns=list(columns), row_groups=row_groups, use_threads=False
            )

    def _parquet(self, name: str) -> "pq.ParquetFile":
        import pyarrow.parquet as pq

        # Remote files are fetched ahead in large requests; local ones need no copy in memory.
        source = self.storage.filesystem.open_input_file(self.storage.arrow_path(name))
        return pq.ParquetFile(source, pre_buffer=not self.storage.is_local)

    def parts(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read part after part."""
        for name in self.part_names:
            yield self.read_part(name, columns)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read the whole table, or the named columns of it."""
        return pa.concat_tables(list(self.parts(columns)))
