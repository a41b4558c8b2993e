import math

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.service.data.columns import open_columns, write_columns
from echostill.curation.service.data.rows import RowReader, dictionaries

SIZE = 7
NUMBERS = {
    pa.int8(): st.integers(-128, 127),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(max_size=4),
    pa.list_(pa.float32()): st.lists(st.floats(0, 1, width=32), max_size=2),
}


@st.composite
def columns(draw, size=SIZE):
    kind = draw(st.sampled_from(list(NUMBERS)))
    values = NUMBERS[kind]
    if draw(st.booleans()):
        values = st.none() | values
    column = pa.array(draw(st.lists(values, min_size=size, max_size=size)), kind)
    encodes = kind == pa.string() and draw(st.booleans())
    return column.dictionary_encode() if encodes else column


@settings(deadline=None)
@given(
    drawn=st.lists(columns(), min_size=1, max_size=3),
    rows=st.lists(st.integers(0, SIZE - 1), max_size=9),
    kind=st.sampled_from([np.uint32, np.int64]),
    start=st.integers(0, 2),
)
def test_rows_are_as_arrow_reads_them(drawn, rows, kind, start):
    names = [f"c{number}" for number in range(len(drawn))]
    padded = [pa.concat_arrays([column[:start], column]) for column in drawn]
    # What was sliced does not begin where its buffers do.
    table = pa.table(dict(zip(names, padded, strict=True))).slice(start)
    wide = [
        field.with_type(pa.large_string()) if field.type == pa.string() else field
        for field in table.schema
    ]
    reader = RowReader(table.cast(pa.schema(wide)), names)
    expected = table.take(pa.array(rows, pa.int64())).to_pylist()
    positions = np.array(rows, dtype=kind)
    assert repr(dictionaries(names, reader.columns(positions))) == repr(expected)
    for row, one in zip(rows, expected, strict=True):
        assert repr(reader.row(row)) == repr(one)
    for one in expected:
        for name, value in one.items():
            if isinstance(value, float) and not math.isfinite(value):
                one[name] = None
    assert repr(dictionaries(names, reader.json_columns(positions))) == repr(expected)


def test_rows_of_a_mapped_table(tmp_path):
    table = pa.table(
        {"name": ["a", "", "ä"], "flag": [True, False, True], "size": [1.5, 2.0, -0.0]}
    )
    write_columns(tmp_path / "t.arrow", table)
    reader = RowReader(open_columns(tmp_path / "t.arrow"), table.column_names)
    rows = np.array([2, 0, 2, 1])
    assert dictionaries(reader.names, reader.columns(rows)) == table.take(rows).to_pylist()


def test_a_table_without_rows_is_read():
    table = pa.table({"name": pa.array([], pa.large_string()), "size": pa.array([], pa.int32())})
    assert RowReader(table, ["size", "name"]).columns(np.array([], dtype=np.uint32)) == [[], []]
