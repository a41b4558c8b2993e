"""Answers as files: any format holds the rows of the stream, whole or not at all."""

import io

import pandas
import polars
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation import answer_files
from echostill.curation.answer_files import AnswerStream, check_answer_file, write_answer
from echostill.platform.errors import EchostillError, UsageError

ROWS = pa.table(
    {
        "image_id": [f"{row:04x}" for row in range(1000)],
        "organ": ["liver", None, "", 'a "b", c'] * 250,
        "distance": pa.array([row / 7 for row in range(1000)], pa.float32()),
        "rank": pa.array(range(1000), pa.decimal128(38, 0)),  # as DuckDB gives a sum
        "chosen": [True, False] * 500,
    }
)


def stream_of(table, piece=997, rows=64, end=None):
    """The pieces of a table's stream, as a worker sends them: the last batch has the metadata."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(rows):
            writer.write_batch(batch)
        empty = [pa.nulls(0, kind) for kind in table.schema.types]
        last = pa.RecordBatch.from_arrays(empty, schema=table.schema)
        writer.write_batch(last, custom_metadata=end or {"truncated": "false"})
    data = sink.getvalue()
    yield from (data[start : start + piece] for start in range(0, len(data), piece))


READERS = {
    "parquet": (pq.read_table, polars.read_parquet, pandas.read_parquet),
    "arrow": (
        lambda path: pa.ipc.open_file(path).read_all(),
        polars.read_ipc,
        pandas.read_feather,
    ),
    "csv": (pyarrow.csv.read_csv, polars.read_csv, pandas.read_csv),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_format_is_read_by_arrow_polars_and_pandas(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_files, "ROWS_PER_WRITE", 300)
    path = tmp_path / "new" / f"answer.{kind}"
    assert write_answer(str(path), stream_of(ROWS)) == 1000
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    table, polar, frame = (read(path) for read in READERS[kind])
    assert table.column_names == polar.columns == list(frame.columns) == ROWS.column_names
    assert len(table) == len(polar) == len(frame) == 1000
    if kind != "csv":
        assert table.equals(ROWS)
        assert polar["organ"].to_list() == ROWS["organ"].to_pylist()
    else:
        assert polar["rank"].to_list() == list(range(1000))
        assert path.read_text().splitlines()[3].split(",")[1] == '""'  # empty, which is not null


def test_csv_has_null_and_every_flat_type(tmp_path):
    row = "date '2026-01-02', uuid(), time '01:02:03', 1::hugeint, 1.25::decimal(9,2)"
    import duckdb

    found = duckdb.sql(f"select {row}, 'a'::enum('a', 'b') as e, null as n, 1/0.0 as i")
    table = found.to_arrow_table()
    path = tmp_path / "a.csv"
    assert write_answer(str(path), stream_of(table)) == 1
    cells = path.read_text().splitlines()[1].split(",")
    assert (cells[0], cells[3:]) == ("2026-01-02", ["1", "1.25", '"a"', "", "inf"])


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=4), piece=st.integers(1, 300))
def test_no_cut_of_the_pieces_matters(tmp_path_factory, kind, sizes, piece):
    path = tmp_path_factory.mktemp("cut") / f"a.{kind}"
    table = ROWS.slice(0, sum(sizes))
    assert write_answer(str(path), stream_of(table, piece, max([*sizes, 1]))) == sum(sizes)
    assert READERS[kind][0](path).num_rows == sum(sizes)


@pytest.mark.parametrize("kind", READERS)
def test_a_query_that_fails_leaves_what_was_there(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    write_answer(str(path), stream_of(ROWS))
    before = path.read_bytes()
    with pytest.raises(EchostillError, match="out of memory"):
        write_answer(str(path), stream_of(ROWS, end={"error": "out of memory"}))

    def broken():
        yield from list(stream_of(ROWS))[:5]
        raise UsageError("the service went away")

    with pytest.raises(UsageError, match="the service went away"):
        write_answer(str(path), broken())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pieces_are_not_held(tmp_path, monkeypatch):
    """When the stream ends, all rows but those of the last row group are in the file."""
    monkeypatch.setattr(answer_files, "ROWS_PER_WRITE", 100)
    sizes = []

    def watched():
        for piece in stream_of(ROWS, rows=50):
            yield piece
            sizes.extend(file.stat().st_size for file in tmp_path.iterdir())

    write_answer(str(tmp_path / "a.csv"), watched())
    assert sizes[-1] > 0.5 * (tmp_path / "a.csv").stat().st_size


def test_what_does_not_fit_into_csv_is_named(tmp_path):
    for values in ([[1.0, 2.0]], [b"png"]):
        table = pa.table({"image_id": ["a"], "feature": values})
        with pytest.raises(UsageError, match=r"'feature'.*\.parquet"):
            write_answer(str(tmp_path / "a.csv"), stream_of(table))
        assert write_answer(str(tmp_path / "a.parquet"), stream_of(table)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    spans = pa.table({"span": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    for name in ("b.csv", "b.parquet"):
        with pytest.raises(UsageError, match=r"does not fit into \.\w+: .*interval"):
            write_answer(str(tmp_path / name), stream_of(spans))


def test_files_are_refused_before_a_query_runs(tmp_path):
    path = tmp_path / "a.arrow"
    check_answer_file(str(path))
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="exists: give another name, or --overwrite"):
        check_answer_file(str(path))
    check_answer_file(str(path), overwrite=True)
    for name in ("answer.txt", "answer", "answer.parquet.zip", "arrow"):
        with pytest.raises(UsageError, match=r"must end in \.parquet, \.arrow, \.csv"):
            check_answer_file(str(tmp_path / name), overwrite=True)
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        check_answer_file(str(tmp_path / "b.csv"), overwrite=True)


def test_truncation_is_known_at_the_end():
    stream = AnswerStream(b"".join(stream_of(ROWS, end={"truncated": "true"})))
    assert (sum(batch.num_rows for batch in stream), stream.truncated) == (1000, True)
