"""The pool as one Parquet file for embedding-atlas: map, pictures, and every column.

embedding-atlas (MIT, https://apple.github.io/embedding-atlas) is another viewer. It reads any
Parquet file, with pictures as a struct with a field ``bytes`` and coordinates as two columns.
"""

import contextlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from echostill.curation.service.data.columns import numbers
from echostill.curation.service.data.coresets import Coreset
from echostill.curation.service.data.neighbours import Report
from echostill.curation.service.data.state import State
from echostill.curation.service.data.thumbnails import encode_jpeg
from echostill.platform.imaging.images import decode_staged, resize_longest
from echostill.platform.tables.atomic import atomic_write

PICTURE = pa.struct([("bytes", pa.binary())])
LEFT_OUT = ("part", "part_row", "scored")


def write_atlas(
    state: State, coreset: Coreset | None, path: Path, side: int, report: Report
) -> int:
    """Write one row per image of the pool, in the pool's order.

    Args:
        state: with a catalogue and a map.
        coreset: whose columns are added, null if an image was not scored; None for none.
        path: of the file; written under this name when it is complete.
        side: longest side of the pictures in pixels; 0 leaves them out.
        report: called with stage and fraction.

    Returns:
        Rows written.
    """
    pool, catalogue, coordinates = state.store.open_pool(), state.catalogue, state.coordinates
    assert coordinates is not None
    parts, rows = (numbers(catalogue.table[name]) for name in ("part", "part_row"))
    order = np.lexsort((rows, parts))
    done = 0
    with atomic_write(path) as partial, contextlib.ExitStack() as open_files:
        writer: pq.ParquetWriter | None = None
        for piece in pool.parts(["image"] if side else ["image_id"]):
            own = order[done : done + piece.num_rows]
            table = _columns(state, coreset, own)
            table = table.add_column(1, "x", pa.array(coordinates[own, 0], from_pandas=True))
            table = table.add_column(2, "y", pa.array(coordinates[own, 1], from_pandas=True))
            if side:
                table = table.add_column(3, "image", _pictures(piece["image"], side))
            if writer is None:
                made = pq.ParquetWriter(partial, table.schema, compression="zstd")
                writer = open_files.enter_context(made)
            writer.write_table(table)
            done += piece.num_rows
            report("writing", done / len(catalogue))
    return done


def _columns(state: State, coreset: Coreset | None, rows: np.ndarray) -> pa.Table:
    """The columns of pool, scores and coreset, for some rows of the catalogue."""
    table = state.catalogue.rows(rows).drop_columns(list(LEFT_OUT))
    if coreset is not None:
        positions = [coreset.position(int(row)) for row in rows]
        own = coreset.table.select(coreset.own_columns).take(pa.array(positions, pa.int64()))
        for name in own.column_names:
            if name not in table.column_names:
                table = table.append_column(name, own[name])
    for index, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        elif pa.types.is_fixed_size_list(kind):
            kind = pa.list_(kind.value_type)  # nulls in fixed-size lists are lost in Parquet
        if kind != field.type:
            table = table.set_column(index, field.name, table.column(index).cast(kind))
    return table.replace_schema_metadata(None)


def _pictures(staged: pa.ChunkedArray, side: int) -> pa.Array:
    pictures = [
        {"bytes": encode_jpeg(resize_longest(decode_staged(bytes(value.as_py())), side))}
        for value in staged
    ]
    return pa.array(pictures, PICTURE)
