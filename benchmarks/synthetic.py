"""A synthetic pool: the columns that a benchmark is about, and the rest filled with constants."""

from typing import Any

import pyarrow as pa

from echostill.platform.tables.schemas import POOL_SCHEMA

CONSTANTS: dict[pa.DataType, Any] = {
    pa.string(): "",
    pa.int32(): 0,
    pa.float32(): 1.0,
    pa.bool_(): False,
    pa.large_binary(): b"",
}


def pool_table(columns: dict[str, Any], rows: int) -> pa.Table:
    """Build a pool of some columns; the others are the same in every row."""
    arrays = [
        pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.repeat(pa.scalar(constant(field.type), field.type), rows)
        for field in POOL_SCHEMA
    ]
    return pa.Table.from_arrays(arrays, schema=POOL_SCHEMA)


def constant(kind: pa.DataType) -> Any:
    """Return the value that fills a column."""
    return bytes(kind.byte_width) if pa.types.is_fixed_size_binary(kind) else CONSTANTS[kind]
