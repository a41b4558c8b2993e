"""A prepared set as others read it."""

import csv
import io
import json

import pytest

from echostill.eval.unius.prepared import BENCH_SCHEMA, bench_manifests, open_prepared
from echostill.jobs.benchmarks.preparation import prepare_bench
from echostill.platform.errors import EchostillError, UsageError


def listed(done):
    text = done.table.storage.read("labels.csv").decode()
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_has_its_columns_and_the_files_are_there(prepared_set):
    _, done = prepared_set("busi")
    table = done.table.read()
    assert table.schema.equals(BENCH_SCHEMA)
    for row in table.to_pylist():
        assert done.table.storage.exists(row["image"])
        assert done.table.storage.exists(row["mask"])
        assert row["image"].startswith(f"images/{row['id']}.")


def test_the_manifest_of_evaluate_has_a_split_only_where_one_is_official(prepared_set):
    _, official = prepared_set("camus")
    table = {row["image"]: row for row in official.table.read().to_pylist()}
    sides = {(table[row["file"]]["split"], row["split"]) for row in listed(official)}
    assert sides == {("train", "train"), ("val", "train"), ("test", "test")}
    _, own = prepared_set("busi")
    assert "split" not in listed(own)[0]


def test_all_sets_of_a_folder_are_found(make_tree, prepared_set, tmp_path):
    for name in ("uf1990", "luminous"):
        source = make_tree(name).write(tmp_path / "downloads" / name)
        options = {"accept_differences": True, "progress": False}
        prepare_bench(name, source, str(tmp_path / "bench" / name), **options)
    names = ("luminous", "uf1990")
    found = [str(tmp_path / "bench" / name / "labels.csv") for name in names]
    assert bench_manifests(str(tmp_path / "bench")) == found
    root = prepared_set("busi")[1].table.storage.root
    assert bench_manifests(root) == [f"{root}/labels.csv"]
    with pytest.raises(UsageError, match="holds no prepared set"):
        bench_manifests(str(tmp_path / "downloads"))


def test_words_say_what_was_found(prepared_set):
    _, done = prepared_set("busi")
    text = done.describe()
    assert "18 rows in = 18 out + 0 dropped + 0 quarantined; 17 groups" in text
    assert "1 groups of them have several labels" in text
    assert "dropped: 2 (empty mask)" in prepared_set("kidneyus")[1].describe()


def test_what_is_no_prepared_set_and_counts_that_do_not_add_up(prepared_set, tmp_path):
    with pytest.raises(UsageError, match="not a prepared set"):
        open_prepared(str(tmp_path))
    _, done = prepared_set("uf1990")
    manifest = json.loads(done.table.storage.read("manifest.json"))
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "rows_in": 13}))
    with pytest.raises(EchostillError, match="13 rows went in, but 12"):
        open_prepared(str(tmp_path))
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "stage": "ingest"}))
    with pytest.raises(UsageError, match="made by `echostill ingest`"):
        open_prepared(str(tmp_path))
