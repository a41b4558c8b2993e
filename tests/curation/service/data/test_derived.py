import os
import shutil
import subprocess
import sys

import pytest

from echostill.curation.local import open_store
from echostill.curation.service.data import derived as derived_files
from echostill.curation.service.data.derived import (
    QUIET_SECONDS,
    ProgressLine,
    derived_folder,
    derived_of,
    prepare,
)
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store


def silent(stage, fraction):
    pass


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """A cache that a test may change: stores of equal content share theirs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_there_is_not_made_again_in_a_copy_of_the_store_neither(built, own_store):
    store = Store(str(own_store))
    folder = derived_folder(store)
    assert folder == derived_folder(Store(str(built)))
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
def test_a_killed_preparation_leaves_nothing_half_made(built, own_cache, stage):
    store = Store(str(built))
    folder = derived_folder(store)
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


@pytest.mark.parametrize("given", [False, True])
def test_files_of_replaced_tables_are_swept_away(own_store, own_cache, make, tmp_path, given):
    store, asked = Store(str(own_store)), str(tmp_path / "asked") if given else None
    old = prepare(store, derived_folder(store, asked), silent, ("catalogue",))
    make["write_store"](own_store, quarantined=6)
    folder = derived_folder(store, asked)
    new = derived_of(store, folder)
    assert new.key != old.key
    assert set(new.missing()) == {"catalogue", "neighbours", "map"}
    prepare(store, folder, silent, ("catalogue",))
    assert new.missing() == ["neighbours", "map"]
    assert not old.catalogue.exists()


def test_files_that_another_store_needs_stay(built, own_store, own_cache, make):
    kept = prepare(Store(str(built)), derived_folder(Store(str(built))), silent, ("catalogue",))
    store = Store(str(own_store))
    prepare(store, derived_folder(store), silent, ("catalogue",))
    make["write_store"](own_store, quarantined=6)
    prepare(store, derived_folder(store), silent, ("catalogue",))
    assert kept.catalogue.exists()


def test_each_of_two_stores_has_files_for_its_own_coresets(built, own_store):
    one, other = (
        derived_of(s, derived_folder(s)) for s in (Store(str(built)), Store(str(own_store)))
    )
    assert one.key == other.key
    assert one.coreset("default", "0" * 64) != other.coreset("default", "0" * 64)


def test_a_pool_alone_has_a_catalogue(own_store):
    shutil.rmtree(own_store / "scores")
    store = Store(str(own_store))
    derived = prepare(store, derived_folder(store), silent)
    assert derived.missing() == []


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


@pytest.fixture
def clock(monkeypatch):
    """The seconds that a progress line reads, to be set."""
    now = [0.0]
    monkeypatch.setattr(derived_files.time, "monotonic", lambda: now[0])
    return now


def test_a_short_preparation_shows_no_progress(capsys, clock):
    line = ProgressLine()
    for clock[0], step in enumerate([0.0, 0.5, 1.0]):
        clock[0] *= QUIET_SECONDS / 4
        line("catalogue: reading", step)
    assert capsys.readouterr().err == ""


def test_a_long_preparation_shows_progress_in_one_line_that_ends(capsys, clock):
    line = ProgressLine()
    for _ in range(2):  # a later preparation has a clock and a line of its own
        for clock[0], stage, fraction in [
            (100.0, "catalogue: reading", 0.0),
            (100.0 + QUIET_SECONDS, "catalogue: sorting", 0.03),
            (100.0 + QUIET_SECONDS, "ready", 1.0),
        ]:
            line(stage, fraction)
        shown = capsys.readouterr().err
        assert shown.endswith("\n")
        assert shown.count("\n") == 1
        words = [piece.split() for piece in shown.strip().split("\r")]
        assert words == [["3.0%", "catalogue:", "sorting"], ["100.0%", "ready"]]


def test_the_first_question_of_a_small_store_prints_nothing_else(own_store, own_cache, capfd):
    with open_store(str(own_store)) as questions:
        assert questions.pool()["images"] == 240
    assert capfd.readouterr() == ("", "")
