"""A table's folder as other programs read it, and tables that were written before."""

import pickle
import shutil

import duckdb
import pandas
import pyarrow as pa
import pyarrow.dataset
import pytest

from echostill.platform.errors import UsageError
from echostill.platform.tables.fingerprint import FINGERPRINT, Claim, Fingerprint
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table, write_manifest, write_table
from echostill.platform.tables.verify import verify_store

ROWS = pa.table({"image_id": ["a", "b", "c"], "selected": [True, False, True]})
TABLES = ("pool", "scores", "coresets/default", "quarantine/ingest", "duplicates", "pins")


def made_from(value):
    return Fingerprint({"value": value}, "0", {}, {})


def write(storage, value=0, table=ROWS):
    """As a stage does: claim, configuration, records of shards, parts, manifest."""
    Claim(storage, made_from(value), "stage", "a table").take(True)
    storage.write("configuration.json", b"{}")
    storage.write("done/00000.json", b"{}")
    storage.write("running/00000-0123", b"")
    fingerprint = made_from(value).as_dict()
    write_table(storage, table, stage="stage", fingerprint=fingerprint, rows_per_part=2)


@pytest.mark.parametrize("name", TABLES)
def test_any_reader_takes_the_folder_as_it_is(tmp_path, name):
    write(Store(str(tmp_path)).table(name))
    folder = str(tmp_path / name)
    assert pandas.read_parquet(folder).to_dict("records") == ROWS.to_pylist()
    assert pyarrow.dataset.dataset(folder).to_table() == ROWS
    for pattern in ("*.parquet", "**/*.parquet"):
        found = duckdb.execute(f"select * from '{folder}/{pattern}' order by image_id")
        assert found.fetchall() == [tuple(row.values()) for row in ROWS.to_pylist()]


@pytest.mark.parametrize("name", TABLES)
def test_polars_takes_the_folder_as_it_is(tmp_path, name):
    polars = pytest.importorskip("polars")
    write(Store(str(tmp_path)).table(name))
    folder = tmp_path / name
    assert polars.read_parquet(folder).to_dicts() == ROWS.to_pylist()
    assert polars.scan_parquet(folder).collect().to_dicts() == ROWS.to_pylist()


def test_the_two_folders_are_one(tmp_path):
    table = Store(str(tmp_path)).table("coresets/a")
    assert not table.exists()
    assert table.list(recursive=True) == []
    write(table)
    again = pickle.loads(pickle.dumps(table))
    files = [
        "configuration.json",
        FINGERPRINT,
        MANIFEST,
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert again.list() == files
    assert again.list("done") == ["done/00000.json"]
    every = [*files, "done/00000.json", "running/00000-0123"]
    assert again.sizes(recursive=True) == {name: len(again.read(name)) for name in every}
    assert again.locate(MANIFEST) == str(tmp_path / "records/coresets/a/manifest.json")
    assert again.locate("part-00000.parquet") == str(tmp_path / "coresets/a/part-00000.parquet")
    assert Table.open(again, "select").read() == ROWS
    assert sorted(path.name for path in (tmp_path / "coresets/a").iterdir()) == files[3:]
    write(again, value=1, table=ROWS.slice(0, 1))  # replaced: nothing of the first is left
    assert again.list() == files[:4]
    assert Table.open(again, "select").read() == ROWS.slice(0, 1)
    again.delete("")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("finished", [True, False])
def test_who_deletes_a_folder_deletes_the_table(tmp_path, finished):
    store = Store(str(tmp_path))
    write(store.coreset("a"))
    if not finished:
        store.coreset("a").delete(MANIFEST)
    shutil.rmtree(tmp_path / "coresets/a")
    gone = store.coreset("a")
    assert not gone.exists()
    assert not gone.exists(MANIFEST)
    assert gone.size(FINGERPRINT) is None
    assert gone.list(recursive=True) == []
    assert store.coreset_names() == []
    if finished:
        (problem,) = verify_store(str(tmp_path)).problems
        assert problem.startswith("coresets/a: its folder is gone")
    assert not Claim(gone, made_from(1), "another", "a table").check()  # the name is free
    write(store.coreset("a"), value=1, table=ROWS.slice(0, 1))
    assert Table.open(store.coreset("a"), "select").read() == ROWS.slice(0, 1)
    assert store.coreset_names() == ["a"]
    assert verify_store(str(tmp_path)).sound


def test_a_table_without_parts_is_one(tmp_path):
    storage = Store(str(tmp_path)).quarantine("ingest")
    write_manifest(storage, stage="ingest", schema=ROWS.schema, parts=[], fingerprint={})
    again = Store(str(tmp_path)).quarantine("ingest")
    assert again.list() == [MANIFEST]
    assert Table.open(again, "ingest").rows == 0


def test_a_claimed_table_is_one_before_its_first_part(tmp_path):
    store = Store(str(tmp_path))
    Claim(store.pool(), made_from(0), "stage", "a table").take(False)
    assert store.pool().exists(FINGERPRINT)
    with pytest.raises(UsageError, match="refused: value 0 -> 1"):
        Claim(store.pool(), made_from(1), "stage", "a table").check()


def test_a_table_of_before_is_read_and_replaced_where_it_is(tmp_path):
    store = Store(str(tmp_path))
    write(Storage(str(tmp_path / "coresets/old")))
    before = store.coreset("old")
    assert store.coreset_names() == ["old"]
    assert Table.open(before, "select").read() == ROWS
    assert before.list("done") == ["done/00000.json"]
    assert not Claim(before, made_from(0), "stage", "a table").check()
    assert store.made_from("no digest") == []
    write(store.coreset("old"), value=1, table=ROWS.slice(0, 1))
    assert Table.open(store.coreset("old"), "select").read() == ROWS.slice(0, 1)
    assert not (tmp_path / "records").exists()
    write(store.coreset("new"))
    assert store.coreset_names() == ["new", "old"]


def test_what_was_made_from_a_table_is_named_in_both_layouts(tmp_path):
    store = Store(str(tmp_path))
    for storage in (store.scores(), Storage(str(tmp_path / "coresets/old")), store.run("r")):
        wanted = Fingerprint({}, "0", {}, {"pool": "digest"})
        Claim(storage, wanted, "stage", "a table").take(False)
    assert sorted(store.made_from("digest")) == ["coresets/old", "runs/r", "scores"]


@pytest.mark.parametrize(
    "folder", ["coresets/2026/v1", "pool (copy)", "other/deep/down", "runs/a/b"]
)
def test_verify_names_a_stray_folder(tmp_path, folder):
    store = Store(str(tmp_path))
    write(store.coreset("default"))
    write(Storage(str(tmp_path / folder)))
    found = verify_store(str(tmp_path))
    (problem,) = found.problems
    assert problem.startswith(f"{folder}: is no place of a store's table or run")
    assert any(line.startswith("coresets/default: 3 rows") for line in found.checked)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "null", '{"parts": [1]}', '{"rows": 1, "parts": [{}]}']
)
@pytest.mark.parametrize("place", ["records/coresets/default", "coresets/default", "runs/a"])
def test_verify_names_a_manifest_of_somebody_else(tmp_path, text, place):
    write(Store(str(tmp_path)).coreset("kept"))
    for folder in (place, "coresets/default"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / MANIFEST).write_text(text)
    found = verify_store(str(tmp_path))
    assert found.problems == [f"{place}: the manifest is not one that echostill wrote"]


def test_verify_says_what_is_damaged_in_the_folders_of_a_table(tmp_path):
    for name in ("part", "manifest", "fingerprint"):
        write(Store(str(tmp_path / name)).coreset("default"))
    (tmp_path / "part/coresets/default/part-00000.parquet").unlink()
    (tmp_path / "manifest/records/coresets/default/manifest.json").write_text("{")
    (tmp_path / "fingerprint/records/coresets/default/fingerprint.json").write_text("{")
    for name, words in (
        ("part", "coresets/default/part-00000.parquet: missing"),
        ("manifest", "coresets/default: the manifest is not JSON"),
        ("fingerprint", "coresets/default: the fingerprint is not JSON"),
    ):
        assert verify_store(str(tmp_path / name)).problems == [words]
