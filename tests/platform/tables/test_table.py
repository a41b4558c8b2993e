import io
import json
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.fingerprint import Claim, Fingerprint, difference
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table, encode_parquet, write_table


def fingerprint(**configuration):
    return Fingerprint(configuration, "1", {}, {})


def test_a_table_is_read_back_in_parts_and_whole(tmp_path):
    storage = Storage(str(tmp_path / "t"))
    table = pa.table({"a": list(range(10)), "b": [str(i) for i in range(10)]})
    write_table(storage, table, stage="x", fingerprint={}, rows_per_part=4)
    found = Table.open(storage, "x")
    assert found.rows == 10
    assert [part.num_rows for part in found.parts()] == [4, 4, 2]
    assert found.read().equals(table)
    assert found.read(["b"]).column_names == ["b"]


def test_an_unfinished_table_is_not_opened(tmp_path):
    storage = Storage(str(tmp_path / "t"))
    with pytest.raises(UsageError, match="does not exist: run `echostill ingest`"):
        Table.open(storage, "ingest")
    storage.write("part-00000.parquet", b"half")
    with pytest.raises(UsageError, match="is not finished"):
        Table.open(storage, "ingest")


def test_a_format_of_another_version_is_refused(tmp_path):
    storage = Storage(str(tmp_path))
    write_table(storage, pa.table({"a": [1]}), stage="x", fingerprint={})
    manifest = json.loads(storage.read("manifest.json"))
    storage.write("manifest.json", json.dumps(manifest | {"format_version": 99}).encode())
    with pytest.raises(EchostillError, match="format 99"):
        Table.open(storage, "x")


def test_equal_tables_have_equal_bytes():
    one = encode_parquet(pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]}))
    assert one == encode_parquet(pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]}))


def test_writes_leave_no_halves(tmp_path):
    storage = Storage(str(tmp_path))
    storage.write("a/b.txt", b"one")
    storage.write("a/b.txt", b"two")
    assert storage.read("a/b.txt") == b"two"
    assert storage.list("a") == ["a/b.txt"]
    (tmp_path / "a" / "c.txt.1234.tmp").write_bytes(b"half")
    assert storage.list("a") == ["a/b.txt"]
    assert storage.size("a/none") is None
    storage.delete("a")
    assert not storage.exists("a")


def test_unknown_schemes_are_refused():
    with pytest.raises(UsageError, match="ftp"):
        Storage("ftp://somewhere/x")


def test_a_folder_belongs_to_one_fingerprint(tmp_path):
    storage = Storage(str(tmp_path / "scores"))
    Claim(storage, fingerprint(seed=1, deep={"x": 2}), "score", "scores").take(False)
    storage.write("part", b"done")
    Claim(storage, fingerprint(seed=1, deep={"x": 2}), "score", "scores").take(False)
    with pytest.raises(UsageError, match=r"refused: deep\.x 2 -> 3"):
        Claim(storage, fingerprint(seed=1, deep={"x": 3}), "score", "scores").take(False)
    assert storage.exists("part")
    Claim(storage, fingerprint(seed=1, deep={"x": 3}), "score", "scores").take(True)
    assert not storage.exists("part")


def test_an_overwrite_that_replaces_nothing_says_so(tmp_path, capsys):
    claim = Claim(Storage(str(tmp_path)), fingerprint(seed=1, deep={"x": 2}), "score", "scores")
    claim.take(True)
    assert capsys.readouterr().err == ""
    claim.take(False)
    assert capsys.readouterr().err == ""
    claim.take(True)
    said = " ".join(capsys.readouterr().err.split())
    assert "--overwrite replaces nothing" in said
    assert "holds scores of this very request" in said


def test_differences_name_added_and_removed_keys():
    old, new = fingerprint(a=1, b=2).as_dict(), fingerprint(b=2, c=3).as_dict()
    assert difference(old, new) == [
        "a 1 -> unset",
        "c unset -> 3",
    ]


def test_parts_are_read_in_pieces(tmp_path):
    storage = Storage(str(tmp_path / "t"))
    half = pa.list_(pa.field("element", pa.float16()), 2)
    schema = pa.schema([("id", pa.string()), ("feature", half)])
    rows = 20_000
    feature = pa.FixedSizeListArray.from_arrays(
        pa.array([row % 100 for row in range(2 * rows)], pa.float16()), type=half
    )
    table = pa.table([[str(row) for row in range(rows)], feature], schema=schema)
    write_table(storage, table, stage="x", fingerprint={})
    found = Table.open(storage, "x")
    (name,) = found.part_names
    assert found.row_groups(name) == [8192, 8192, 3616]
    batches = list(found.batches(name, ["feature"], 1000))
    assert max(batch.num_rows for batch in batches) <= 1000
    read = pa.Table.from_batches(batches)
    assert read["feature"].combine_chunks().equals(table["feature"].combine_chunks())
    last = pa.Table.from_batches(list(found.batches(name, ["id"], 1000, [2])))
    assert last["id"].to_pylist() == [str(row) for row in range(16384, rows)]
    # Lists are stored plain: reading halves through a dictionary takes five times as long.
    columns = pq.ParquetFile(storage.arrow_path(name)).metadata.row_group(0)
    assert "RLE_DICTIONARY" in columns.column(0).encodings
    assert "RLE_DICTIONARY" not in columns.column(1).encodings


@settings(deadline=None)
@given(st.integers(0, 1100), st.integers(0, 1100))
def test_any_rows_of_a_part_are_read_through_its_row_groups(bounds_a, bounds_b):
    start, stop = sorted((bounds_a, bounds_b))
    table = pa.table({"number": range(1000), "word": [f"{n}" for n in range(1000)]})
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(folder)
        pq.write_table(table, storage.local_path("part"), row_group_size=256)
        read = Table(storage, {}).read_rows("part", start, stop, ["number"])
    assert read["number"].to_pylist() == list(range(1000))[start:stop]
    assert read.column_names == ["number"]


def test_pictures_make_small_row_groups():
    rows = 700
    table = pa.table({"image": pa.array([bytes(90_000)] * rows, pa.large_binary())})
    groups = pq.ParquetFile(io.BytesIO(encode_parquet(table))).metadata
    assert groups.num_rows == rows
    assert groups.row_group(0).num_rows == 372  # 32 MiB of them
    small = pa.table({"number": range(20_000)})
    assert pq.ParquetFile(io.BytesIO(encode_parquet(small))).metadata.num_row_groups == 3
