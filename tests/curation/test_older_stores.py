"""A store as an earlier release left it: every later one opens, checks, queries and uses it."""

import tarfile
from pathlib import Path

import pyarrow.compute as pc
import pytest

from echostill.curation.datasets import export_dataset
from echostill.curation.local import open_store
from echostill.curation.selection.stage import SelectConfig, select
from echostill.platform.tables.holdings import holdings
from echostill.platform.tables.housekeeping import delete_result, rename_result
from echostill.platform.tables.store import FORMAT, Store
from echostill.platform.tables.verify import verify_store

STORES = sorted(Path(__file__).parent.glob("store-format-*.tar.xz"))  # made by the commands of then


@pytest.fixture(params=STORES, ids=lambda path: path.name.partition(".")[0])
def root(request, tmp_path):
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    return str(tmp_path / "store")


def test_it_is_sound_and_answers(root):
    found = verify_store(root)
    assert found.sound, found.describe()
    assert [one.name for one in holdings(Store(root), "coresets")] == ["default", "half"]
    with open_store(root) as store:
        assert store.pool()["images"] == 24
        assert store.pool()["quarantined"] == {"ingest": 1, "score": 0}
        counts = store.sql("select coreset, count(*) from coresets where selected group by all")
        assert sorted(counts.to_pydict()["coreset"]) == ["default", "half"]
        assert sorted(counts.columns[1].to_pylist()) == [8, 12]
        assert store.pins()[0]["reason"] == "a typical view"
        image = store.pins()[0]["image_ids"][0]
        assert "pinned by anna" in store.why(image)
        assert len(store.neighbours(image, 5)) == 5
        assert store.compare("default", "half")["both"] >= 1
        assert store.thumbnail(image, size=32)
    assert not Store(root).storage.exists(FORMAT)  # questions write nothing


def test_it_is_selected_from_and_exported(root, tmp_path):
    select(SelectConfig(store=root, name="later", budget=10, progress=False))
    store = Store(root)
    assert store.storage.exists(FORMAT)
    rows = store.open_coreset("later").read()
    assert pc.sum(rows["selected"]).as_py() == 10
    written = export_dataset(root, "default", str(tmp_path / "out"), "csv")
    assert written.images == {"train": 8}
    assert len(list((tmp_path / "out" / "images").iterdir())) == 8
    rename_result(store, "coresets/half", "other")
    delete_result(store, "coresets/default")
    assert store.coreset_names() == ["later", "other"]
    assert verify_store(root).sound


def test_there_is_one_of_the_first_format():
    assert [path.name for path in STORES] == ["store-format-1.tar.xz"]
