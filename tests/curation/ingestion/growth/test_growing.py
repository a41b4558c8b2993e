"""A pool that grows: what one ingest of all would hold, and what was there stays to the byte.

The ingests run in this process, without Ray, and can be killed at any write.
"""

import importlib.util
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.platform.errors import UsageError
from echostill.platform.tables.table import decode_parquet, encode_parquet
from echostill.platform.tables.verify import verify_store
from echostill.platform.tables.versions import at_version, versions
from echostill.platform.withdrawal.state import former_digests

_SPEC = importlib.util.spec_from_file_location("ingests", Path(__file__).parents[2] / "ingests.py")
_HELP = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_HELP)
Ingests, Killed, killed_at = _HELP.Ingests, _HELP.Killed, _HELP.killed_at
DICOM, instance, picture = _HELP.DICOM, _HELP.instance, _HELP.picture


@pytest.fixture(autouse=True)
def here(ingest_in_process, monkeypatch):
    monkeypatch.setenv("ECHOSTILL_KEY", _HELP.KEY)


@pytest.fixture
def ingests(tmp_path):
    return Ingests(tmp_path)


def test_new_files_become_further_parts_and_the_first_stay_as_they_are(ingests):
    for seed in (0, 1, 2, 3, 5, 6, 10):
        picture(ingests.folder / "first" / f"{seed}.png", seed)
    ingests.run("first")
    before = ingests.parts()
    assert ingests.store().open_pool().manifest.get("versions") is None
    for seed in (7, 8):
        picture(ingests.folder / "second" / f"{seed}.png", seed)
    done = ingests.run("first", "second")
    assert done.counts["files"] == 9
    after = ingests.parts()
    assert len(before) == 3
    assert set(after) - set(before) == {"part-00003.parquet"}
    assert {name: after[name] for name in before} == before
    pool = ingests.store().open_pool()
    assert [(one.number, one.rows) for one in versions(pool)] == [(1, 7), (2, 9)]
    assert versions(pool)[1].made_from["files"] == 2
    assert at_version(pool, versions(pool)[0]).rows == 7
    ingests.run("first", "second", store="whole")
    assert ingests.rows() == ingests.rows("whole")
    assert verify_store(ingests.store().root).sound


@pytest.mark.parametrize("again", [("first", "second"), ("second",), ("first",)])
def test_what_is_in_the_pool_is_not_read_again(ingests, again):
    picture(ingests.folder / "first" / "a.png", 1)
    picture(ingests.folder / "second" / "b.png", 2)
    ingests.run("first")
    assert not ingests.run("second").already_done
    before = ingests.files()
    done = ingests.run(*again)
    assert done.already_done
    assert done.counts["files"] == 2
    assert ingests.files() == before


FILES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from("abc"), st.integers(0, 9)), min_size=1, max_size=6
)


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FILES, min_size=2, max_size=3))
def test_any_order_of_appends_gives_the_rows_of_one_ingest(tmp_path_factory, growths):
    """Files of several folders, some of one name, some with equal bytes, some torn."""
    ingests = Ingests(tmp_path_factory.mktemp("appends"))
    written, folders = {}, []
    for files in growths:
        for folder, name, seed in files:
            place = f"folder {folder}/{name}.png"
            if written.setdefault(place, seed) == seed:
                picture(ingests.folder / place, seed)
            if f"folder {folder}" not in folders:
                folders.append(f"folder {folder}")
        before = ingests.parts() if (ingests.folder / "store").exists() else {}
        ingests.run(*folders)
        assert {name: ingests.parts()[name] for name in before} == before
    ingests.run(*folders, store="whole")
    pool, held = ingests.rows()
    whole, held_of_whole = ingests.rows("whole")
    assert pool == whole
    assert [row["source"] for row in held] == [row["source"] for row in held_of_whole]
    assert verify_store(ingests.store().root).sound


def test_instances_are_told_apart_as_in_one_ingest(ingests):
    """One instance again, other pixels under its id, and both once more."""
    instance(ingests.folder / "one" / "a.dcm", 1, "1.2.3")
    instance(ingests.folder / "one" / "b.dcm", 2, "1.2.3")
    instance(ingests.folder / "two" / "c.dcm", 1, "1.2.3")
    instance(ingests.folder / "two" / "d.dcm", 2, "1.2.3")
    instance(ingests.folder / "two" / "e.dcm", 3, "1.2.3")
    ingests.run("one")
    ingests.run("one", "two")
    ingests.run("one", "two", store="whole")
    assert ingests.rows() == ingests.rows("whole")
    assert len({row["group_id"] for row in ingests.rows()[0]}) == 1


def manifest(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["file,id,patient,device"] + [",".join(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def test_groups_and_own_ids_and_devices_go_on(ingests):
    for seed in range(4):
        picture(ingests.folder / f"{seed}.png", seed)
    manifest(ingests.folder / "first.csv", [("0.png", "x", "anna", "Epiq 7")])
    later = [("1.png", "y", "anna", "EPIQ 7"), ("2.png", "x", "bert", "EPIQ  7")]
    manifest(ingests.folder / "later.csv", later)
    ingests.run("first.csv")
    ingests.run("later.csv")
    (anna, other), held = ingests.rows()
    assert anna["group_id"] == other["group_id"]
    assert {anna["device"], other["device"]} == {"Epiq 7"}
    assert "same id" in held[0]["message"]
    ingests.run("first.csv", "later.csv", store="whole")
    assert ingests.rows()[0] == ingests.rows("whole")[0]


def test_changed_and_vanished_files_are_named_and_need_a_word(ingests):
    for seed in range(3):
        picture(ingests.folder / "all" / f"{seed}.png", seed)
    ingests.run("all")
    before = ingests.files()
    picture(ingests.folder / "all" / "0.png", 10)
    (ingests.folder / "all" / "1.png").unlink()
    picture(ingests.folder / "all" / "new.png", 11)
    with pytest.raises(UsageError, match=r"1 file with other content \(0.png\).*1 file no longer"):
        ingests.run("all")
    with pytest.raises(UsageError, match=r"1 file no longer there \(1.png\)"):
        ingests.run("all", changed="keep")
    assert ingests.files() == before
    ingests.run("all", changed="keep", vanished="keep")
    assert [row["source"] for row in ingests.rows()[0]].count("0.png") == 1
    ingests.run("all", changed="read", vanished="keep")
    assert [row["source"] for row in ingests.rows()[0]].count("0.png") == 2
    assert ingests.run("all", vanished="keep").already_done
    assert [row["source"] for row in ingests.rows()[0]].count("1.png") == 1
    assert verify_store(ingests.store().root).sound


def test_a_touched_or_moved_file_is_the_same_file(ingests):
    for seed in range(3):
        picture(ingests.folder / "here" / f"{seed}.png", seed)
    ingests.run("here")
    (ingests.folder / "here" / "0.png").touch()
    assert ingests.run("here").already_done
    (ingests.folder / "here").rename(ingests.folder / "there")
    picture(ingests.folder / "there" / "new.png", 7)
    ingests.run("there")
    assert len(ingests.rows()[0]) == 4


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"stage_side": 16}, "stage_side 256 -> 16"), ({"organ": "liver"}, "organ '' -> liver")],
)
def test_files_that_would_be_read_otherwise_are_refused_by_the_key(ingests, settings, named):
    picture(ingests.folder / "first" / "a.png", 1)
    picture(ingests.folder / "second" / "b.png", 2)
    ingests.run("first")
    with pytest.raises(UsageError, match=named):
        ingests.run("first", "second", **settings)


def test_another_key_is_refused_in_words(ingests, monkeypatch):
    picture(ingests.folder / "first" / "a.png", 1)
    picture(ingests.folder / "second" / "b.png", 2)
    ingests.run("first")
    monkeypatch.setenv("ECHOSTILL_KEY", "another key of thirty characters")
    with pytest.raises(UsageError, match="another key for identifiers") as raised:
        ingests.run("first", "second")
    assert " -> " not in str(raised.value)


def test_a_derived_key_is_found_in_the_files_of_the_pool(ingests, monkeypatch):
    monkeypatch.delenv("ECHOSTILL_KEY")
    instance(ingests.folder / "first" / "a.dcm", 1, "1.2.1")
    for seed in (20, 21, 22):
        picture(ingests.folder / "first" / f"{seed}.png", seed)
    instance(ingests.folder / "second" / "b.dcm", 2, "1.2.2")
    ingests.run("first")
    with pytest.raises(UsageError, match="name the sources that it was made from too"):
        ingests.run("second")
    ingests.run("first", "second")
    groups = {row["source"]: row["group_id"] for row in ingests.rows()[0]}
    assert groups["a.dcm"] == groups["b.dcm"]
    for seed in range(30, 70):
        picture(ingests.folder / "first" / f"{seed}.png", seed)
    ingests.run("first", "second")
    assert len(versions(ingests.store().open_pool())) == 3


def test_a_retry_mends_files_of_every_version(ingests):
    for seed in (1, 4):
        picture(ingests.folder / "first" / f"{seed}.png", seed)
    for seed in (2, 9):
        picture(ingests.folder / "second" / f"{seed}.png", seed)
    ingests.run("first")
    ingests.run("first", "second")
    picture(ingests.folder / "first" / "4.png", 40)
    picture(ingests.folder / "second" / "9.png", 41)
    assert ingests.run("first", "second").already_done
    done = ingests.retry("first", "second")
    assert (done.counts["quarantined_before"], done.counts["quarantined"]) == (2, 0)
    assert [one.rows for one in versions(ingests.store().open_pool())] == [2, 4]
    assert verify_store(ingests.store().root).sound
    ingests.run("first", "second", store="whole")
    assert ingests.rows() == ingests.rows("whole")


def test_a_listing_of_an_earlier_release_grows_too(ingests):
    picture(ingests.folder / "first" / "a.png", 1)
    picture(ingests.folder / "second" / "b.png", 2)
    ingests.run("first")
    sources = ingests.store().sources()
    kept = decode_parquet(sources.read("files.parquet")).select(["name", "digest"])
    sources.write("files.parquet", encode_parquet(kept))
    for name in ingests.store().pool().list("done"):
        record = json.loads(ingests.store().pool().read(name))
        del record["digests"]
        ingests.store().pool().write(name, json.dumps(record).encode())
    assert ingests.run("first").already_done
    ingests.run("first", "second")
    ingests.run("first", "second", store="whole")
    assert ingests.rows() == ingests.rows("whole")


def test_killed_anywhere_the_same_command_finishes_to_the_byte(ingests):
    """An exception at some writes or deletions of a growth, and then the same command."""
    for seed in (1, 2, 4, 6):
        picture(ingests.folder / "first" / f"{seed}.png", seed)
    instance(ingests.folder / "first" / "a.dcm", 1, "1.2.3")
    for seed in (7, 9, 11):
        picture(ingests.folder / "second" / f"{seed}.png", seed)
    instance(ingests.folder / "second" / "a.dcm", 1, "1.2.3")
    instance(ingests.folder / "second" / "b.dcm", 2, "1.2.3")
    ingests.run("first")
    shutil.copytree(ingests.folder / "store", ingests.folder / "start")
    before = ingests.parts()
    ingests.run("first", "second")
    undisturbed = ingests.files()
    with killed_at(0) as left:
        shutil.rmtree(ingests.folder / "store")
        shutil.copytree(ingests.folder / "start", ingests.folder / "store")
        ingests.run("first", "second")
    steps = -left[0]
    chance = random.Random(7)  # all of them in benchmarks/growing.py
    for moment in sorted(chance.sample(range(1, steps), 5)):
        shutil.rmtree(ingests.folder / "store")
        shutil.copytree(ingests.folder / "start", ingests.folder / "store")
        with pytest.raises(Killed), killed_at(moment):
            ingests.run("first", "second")
        assert {name: ingests.parts()[name] for name in before} == before
        assert verify_store(ingests.store().root).sound
        ingests.run("first", "second")
        assert ingests.files() == undisturbed, f"killed at {moment} of {steps}"


def test_a_growth_that_is_given_up_leaves_nothing(ingests):
    for seed in range(4):
        picture(ingests.folder / "first" / f"{seed}.png", seed)
    for seed in range(5, 9):
        picture(ingests.folder / "wrong" / f"{seed}.png", seed)
    picture(ingests.folder / "right" / "a.png", 10)
    ingests.run("first")
    with pytest.raises(Killed), killed_at(12):
        ingests.run("first", "wrong")
    ingests.run("first", "right")
    assert {row["source"] for row in ingests.rows()[0]} == {
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "a.png",
    }
    ingests.run("first", "right", store="whole")
    assert ingests.rows() == ingests.rows("whole")
    assert verify_store(ingests.store().root).sound


def test_what_is_withdrawn_from_a_pool_that_grows_stays_out_of_it(ingests):
    for name, seed in (("first/a", 0), ("first/b", 1), ("second/c", 2), ("third/d", 3)):
        picture(ingests.folder / f"{name}.png", seed)
    ingests.run("first")
    ingests.run("first", "second")
    of_file = {row["source"]: row["image_id"] for row in ingests.rows()[0]}
    first = versions(ingests.store().open_pool())
    gone = of_file["a.png"]
    withdraw(ingests.store().root, WithdrawalRequest("image", gone), reason="consent withdrawn")
    between = versions(ingests.store().open_pool())
    assert [one.rows for one in between] == [1, 2]
    done = ingests.run("first", "second", "third")
    assert "1 withdrawn image(s) refused" in str(done)
    pool = ingests.store().open_pool()
    assert sorted(row["source"] for row in ingests.rows()[0]) == ["b.png", "c.png", "d.png"]
    assert versions(pool)[:2] == between
    assert former_digests(pool.manifest) == [first[-1].digest]
    assert verify_store(ingests.store().root).sound


def test_a_file_whose_name_is_no_text_is_read_and_the_pool_grows(ingests):
    picture(ingests.folder / "first" / "a.png", 0)
    picture(ingests.folder / "first" / os.fsdecode(b"m\xfcller.png"), 1)
    ingests.run("first")
    picture(ingests.folder / "second" / "b.png", 2)
    assert ingests.run("first", "second").counts["rows_out"] == 3
    sources = sorted(row["source"] for row in ingests.rows()[0])
    assert sources == ["a.png", "b.png", "m\\udcfcller.png"]
