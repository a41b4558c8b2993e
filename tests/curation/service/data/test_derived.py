import os
import shutil
import subprocess
import sys

import pytest

from echostill.curation.service.data.derived import derived_folder, derived_of, prepare
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store
from echostill.platform.tables.verify import verify_store


def silent(stage, fraction):
    pass


def test_what_is_there_is_not_made_again(own_store):
    store = Store(str(own_store))
    folder = derived_folder(store)
    assert folder == own_store / "scores" / "service"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    told = []
    derived = prepare(store, folder, lambda *step: told.append(step))
    assert told == []
    assert derived.missing() == []
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert {path for path in before if before[path] != after[path]} <= {folder / "lock"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["neighbours: training", "neighbours: writing", "map: interpolating"]
)
def test_a_killed_preparation_leaves_nothing_half_made(own_store, stage):
    store = Store(str(own_store))
    folder = derived_folder(store)
    shutil.rmtree(folder)
    code = (
        "import os, sys\n"
        "from echostill.curation.service.data.derived import derived_folder, prepare\n"
        "from echostill.platform.tables.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "def report(stage, fraction):\n"
        "    if stage == sys.argv[2]: os.kill(os.getpid(), 9)\n"
        "prepare(store, derived_folder(store), report)\n"
    )
    arguments = [sys.executable, "-c", code, store.root, stage]
    assert subprocess.run(arguments, env=os.environ).returncode == -9
    derived = derived_of(store, folder)
    assert derived.catalogue.exists()
    assert derived.neighbours.exists() == stage.startswith("map")
    assert not derived.map.exists()
    prepare(store, folder, silent)
    assert derived.missing() == []
    assert not list(folder.glob("*.tmp"))


def test_files_of_replaced_tables_are_swept_away(own_store, make):
    store = Store(str(own_store))
    folder = derived_folder(store)
    old = derived_of(store, folder)
    make["write_store"](own_store, quarantined=6)
    new = derived_of(store, folder)
    assert new.key != old.key
    assert set(new.missing()) == {"catalogue", "neighbours", "map"}
    prepare(store, folder, silent, ("catalogue",))
    assert new.missing() == ["neighbours", "map"]
    assert not old.catalogue.exists()
    assert not old.neighbours.exists()


def test_a_store_with_derived_files_is_sound(own_store):
    assert verify_store(str(own_store)).sound


def test_a_pool_alone_has_a_catalogue(own_store):
    shutil.rmtree(own_store / "scores")
    store = Store(str(own_store))
    derived = prepare(store, derived_folder(store), silent)
    assert derived.missing() == []
    assert derived.folder == own_store / "service"


def test_scores_of_another_pool_are_refused(own_store, make):
    store = Store(str(own_store))
    rows = make["pool_rows"](10)
    import pyarrow as pa

    from echostill.platform.tables.schemas import POOL_SCHEMA
    from echostill.platform.tables.table import write_table

    table = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    write_table(store.pool(), table, stage="ingest", fingerprint={}, extra={"rows_in": 10})
    with pytest.raises(UsageError, match="226 scored images are not in the pool"):
        prepare(store, derived_folder(store), silent)


def test_a_remote_store_is_derived_into_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = derived_folder(Store("gs://anonymous@bucket/store"))
    assert folder.parent == tmp_path / "echostill"
    assert derived_folder(Store("gs://anonymous@bucket/other")) != folder
    assert (
        derived_folder(Store("gs://anonymous@bucket/store"), str(tmp_path / "x")) == tmp_path / "x"
    )
