"""Stores merged into one: what one ingest would hold, withdrawn images out, kills survived.

The stores are made by ingests in this process, or written row by row.
"""

import importlib.util
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echostill.curation.deidentification.decisions import latest
from echostill.curation.deidentification.decisions import record as decide
from echostill.curation.deidentification.review import NEEDS_REVIEW, waiting
from echostill.curation.deidentification.settings import DeidentifySettings
from echostill.curation.deidentification.verdict import Context, Verdict
from echostill.curation.merging.merging import merge
from echostill.curation.merging.settings import MergeConfig
from echostill.curation.selection.explain.origins import stores_of
from echostill.curation.selection.explain.questions import quarantined
from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.jobs.cli.main import main
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.shards.log import Accounting
from echostill.platform.shards.outcome import Outcome
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables import lease
from echostill.platform.tables.fingerprint import Claim, Fingerprint
from echostill.platform.tables.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA
from echostill.platform.tables.store import FORMAT, Store, finish_run
from echostill.platform.tables.table import MANIFEST, Table, write_table
from echostill.platform.tables.verify import verify_store
from echostill.platform.tables.versions import made_from_pool, version_with, versions
from echostill.platform.withdrawal.tombstones import Tombstones, write_tombstones

_SPEC = importlib.util.spec_from_file_location("ingests", Path(__file__).parents[1] / "ingests.py")
_HELP = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_HELP)
Ingests, Killed, killed_at = _HELP.Ingests, _HELP.Killed, _HELP.killed_at
instance, picture, KEY = _HELP.instance, _HELP.picture, _HELP.KEY


@pytest.fixture(autouse=True)
def here(ingest_in_process, monkeypatch):
    monkeypatch.setenv("ECHOSTILL_KEY", _HELP.KEY)


class Merges(Ingests):
    """Ingests into stores of one folder, and merges of these."""

    def merge(self, *stores, to="merged", dry_run=False, **values):
        named = {name: str(self.folder / name) for name in stores}
        config = MergeConfig(store=str(self.folder / to), stores=named, **values)
        return merge(config, dry_run=dry_run)

    def hospitals(self, **settings):
        """Make two hospitals' stores, with a patient and a picture that both have."""
        for seed in (0, 1, 2, 3):
            picture(self.folder / "north files" / f"n{seed}.png", seed)
        picture(self.folder / "north files" / "both.png", 7)
        instance(self.folder / "north files" / "a.dcm", 20, "1.2.3", patient="anna")
        for seed in (5, 6, 8, 9):  # the last is no picture
            picture(self.folder / "south files" / f"s{seed}.png", seed)
        picture(self.folder / "south files" / "copy.png", 7)
        instance(self.folder / "south files" / "b.dcm", 21, "1.2.4", patient="anna")
        self.run("north files", store="north", **settings)
        self.run("south files", store="south", **settings)

    def table(self, name, store="merged"):
        return Table.open(self.store(store).table(name), "merge").read().to_pylist()


@pytest.fixture
def merges(tmp_path):
    return Merges(tmp_path)


def test_the_halves_of_a_pool_merge_to_what_one_ingest_of_all_holds(merges):
    merges.hospitals()
    (merges.folder / "south files" / "copy.png").unlink()
    shutil.rmtree(merges.folder / "south")
    merges.run("south files", store="south")
    said = merges.merge("south", "north").describe()
    merges.run("north files", "south files", store="whole")
    assert merges.rows("merged") == merges.rows("whole")
    assert "under one key" in said
    assert verify_store(str(merges.folder / "merged")).sound
    north = merges.store("north").open_pool()
    pool = merges.store("merged").open_pool()
    assert [one.digest for one in versions(pool)][:1] == [north.digest]
    assert merges.run("north files", "south files", store="merged").already_done
    picture(merges.folder / "more" / "x.png", 30)
    done = merges.run("north files", "south files", "more", store="merged")
    assert done.counts["rows_out"] == pool.rows + 1
    assert len(versions(merges.store("merged").open_pool())) == 3
    assert verify_store(str(merges.folder / "merged")).sound


def test_copies_in_two_stores_are_one_image_and_it_is_said_whose(merges):
    merges.hospitals()
    done = merges.merge("north", "south", licence={"south": "CC-BY-4.0"})
    rows, held = merges.rows("merged")
    assert Counter(row["source"] for row in rows)["copy.png"] == 0
    north, south = merges.table("contributors")
    assert (north["store"], south["store"]) == ("north", "south")
    assert (south["rows"], south["merged"], south["duplicates"]) == (5, 4, 1)
    assert (south["licence"], north["licence"]) == ("CC-BY-4.0", "")
    assert done.rows == len(rows) == north["merged"] + south["merged"]
    assert len(held) == north["quarantined"] + south["quarantined"] == 1
    kept = next(row["image_id"] for row in rows if row["source"] == "both.png")
    left = next(row["image_id"] for row in merges.rows("south")[0] if row["source"] == "copy.png")
    store = merges.store("merged")
    assert stores_of(store, kept) == "north, also in south"
    assert f"same pixels as image {kept}" in quarantined(store, left).text
    groups = {row["source"]: row["group_id"] for row in rows}
    assert groups["a.dcm"] == groups["b.dcm"]  # one patient in two hospitals
    again = merges.merge("south", "north", licence={"south": "CC-BY-4.0"})
    assert again.already_done
    assert again.contributors == done.contributors
    withdraw(store.root, WithdrawalRequest("image", kept), reason="consent withdrawn")
    assert verify_store(store.root).sound
    assert left not in {row["image_id"] for row in merges.table("origins")}


def test_under_two_keys_groups_stay_apart_and_it_is_said(merges, monkeypatch):
    merges.hospitals(deidentify=DeidentifySettings(pixels="off", sources="names"))
    shutil.rmtree(merges.folder / "south")
    monkeypatch.setenv("ECHOSTILL_KEY", "another key, of another hospital")
    merges.run("south files", store="south")
    done = merges.merge("north", "south")
    assert "a patient of two of these stores counts as two" in done.describe()
    rows = merges.rows("merged")[0]
    groups = {row["source"]: row["group_id"] for row in rows}
    assert groups["a.dcm"] != groups["b.dcm"]
    assert "copy.png" not in groups  # found by its pixels
    south = {row["source"]: row["group_id"] for row in merges.rows("south")[0]}
    assert not set(south.values()) & set(groups.values())
    monkeypatch.setenv("ECHOSTILL_KEY", KEY)
    assert merges.merge("south", "north").already_done
    picture(merges.folder / "more" / "x.png", 30)
    merges.run("north files", "more", store="merged")  # under the first store's key
    assert len(merges.rows("merged")[0]) == len(rows) + 1
    assert verify_store(str(merges.folder / "merged")).sound


def test_stores_without_a_key_are_kept_apart_too(merges, monkeypatch):
    monkeypatch.delenv("ECHOSTILL_KEY")
    for name, seed in (("one", 0), ("two", 1)):
        picture(merges.folder / f"{name} files" / "ward" / "a.png", seed)
        merges.run(f"{name} files", store=name, group_pattern="ward")
    assert "kept apart" in merges.merge("one", "two").describe()
    assert len({row["group_id"] for row in merges.rows("merged")[0]}) == 2
    picture(merges.folder / "more" / "ward" / "x.png", 30)
    merges.run("one files", "more", store="merged", group_pattern="ward")
    assert len(merges.rows("merged")[0]) == 3


def test_what_one_store_has_withdrawn_comes_in_from_none(merges):
    merges.hospitals()
    north = {row["source"]: row for row in merges.rows("north")[0]}
    for request in (
        WithdrawalRequest("image", north["both.png"]["image_id"]),
        WithdrawalRequest("group", north["a.dcm"]["group_id"]),
    ):
        withdraw(merges.store("north").root, request, reason="asked for", key=KEY.encode())
    done = merges.merge("north", "south")
    sources = {row["source"] for row in merges.rows("merged")[0]}
    assert not sources & {"both.png", "copy.png", "a.dcm", "b.dcm"}
    assert [one["withdrawn"] for one in done.contributors] == [0, 2]
    verified = verify_store(str(merges.folder / "merged"))
    assert verified.sound, verified.problems
    again = merges.run("north files", "south files", store="merged", changed="keep")
    assert not {row["source"] for row in merges.rows("merged")[0]} & {"copy.png", "b.dcm"}
    assert again.counts["rows_out"] == done.rows


def test_withdrawn_groups_need_the_key_that_recognises_them(merges, monkeypatch):
    merges.hospitals()
    group = next(r["group_id"] for r in merges.rows("north")[0] if r["source"] == "a.dcm")
    request = WithdrawalRequest("group", group)
    withdraw(merges.store("north").root, request, reason="asked for", key=KEY.encode())
    monkeypatch.delenv("ECHOSTILL_KEY")
    with pytest.raises(UsageError, match="recognised only with the key"):
        merges.merge("north", "south")
    monkeypatch.setenv("ECHOSTILL_KEY", "another key, of another hospital")
    with pytest.raises(UsageError, match="recognised only with the key"):
        merges.merge("north", "south")
    assert not (merges.folder / "merged").exists()


def test_organs_and_devices_get_new_names_and_strange_ones_are_named(merges):
    picture(merges.folder / "one files" / "a.png", 0)
    picture(merges.folder / "two files" / "b.png", 1)
    merges.run("one files", store="one", organ="Leber", device="ACME One")
    merges.run("two files", store="two", organ="liver", device="acme one")
    with pytest.raises(UsageError, match=r"no store has the organ 'Lebr'.*leber.*Nothing was"):
        merges.merge("one", "two", map={"organ": {"Lebr": "liver"}})
    assert not (merges.folder / "merged").exists()
    done = merges.merge("one", "two", map={"organ": {"Leber": "Liver"}})
    rows = merges.rows("merged")[0]
    assert {(row["organ"], row["device"]) for row in rows} == {("liver", "ACME One")}
    assert done.contributors[0]["organs"] == "liver 1"
    other = merges.merge("one", "two", to="other", map={"organ": {"liver": "hepar"}})
    assert "Organs without a new name in the map stay: leber 1." in other.describe()


def test_stores_that_cannot_be_one_are_refused_in_words(merges):
    merges.hospitals()
    merges.run("south files", store="small", stage_side=16)
    before = {name: merges.files(name) for name in ("north", "south", "small")}
    with pytest.raises(UsageError, match="stage_side 256 -> 16"):
        merges.merge("north", "small")
    with pytest.raises(UsageError, match="one store, or one lies in the other"):
        merges.merge("north", "south", to="north")
    with pytest.raises(UsageError, match="one lies in the other"):
        merges.merge("north", "south", to="north/inside")
    with pytest.raises(UsageError, match="two stores or more"):
        merges.merge("north")
    with pytest.raises(UsageError, match="there is no store"):
        merges.merge("north", "nowhere")
    with pytest.raises(UsageError, match="holds something else"):
        merges.merge("north", "south", to="small")
    busy = lease.hold(merges.store("south").storage, "score", "scores")
    with busy, pytest.raises(UsageError, match=r"in use by `echostill score`"):
        merges.merge("north", "south")
    assert {name: merges.files(name) for name in before} == before
    later = merges.folder / "south" / FORMAT
    later.write_text('{"format_version": 99, "written_by": "9"}')
    with pytest.raises(EchostillError, match="upgrade echostill"):
        merges.merge("north", "south")
    later.unlink()
    merges.merge("north", "south")
    with pytest.raises(UsageError, match="is a merge of something else"):
        merges.merge("north", "south", licence={"north": "CC0"})
    (merges.folder / "south" / "records/pool/manifest.json").unlink()
    with pytest.raises(UsageError, match="run `echostill ingest`"):
        merges.merge("north", "south", to="fresh")


def test_a_dry_run_says_what_comes_and_writes_nothing(merges):
    merges.hospitals()
    before = {name: merges.files(name) for name in ("north", "south")}
    said = merges.merge("north", "south", dry_run=True)
    assert not (merges.folder / "merged").exists()
    done = merges.merge("north", "south")
    assert said.describe() == done.describe()
    assert (done.rows, done.groups) == (10, len({r["group_id"] for r in merges.rows("merged")[0]}))
    assert {name: merges.files(name) for name in before} == before


@pytest.mark.slow
def test_killed_at_any_write_the_same_command_finishes_to_the_byte(merges):
    merges.hospitals()
    north = {row["source"]: row for row in merges.rows("north")[0]}
    request = WithdrawalRequest("image", north["n0.png"]["image_id"])
    withdraw(merges.store("north").root, request, reason="asked for")
    merges.merge("north", "south")
    undisturbed = merges.files("merged")
    shutil.rmtree(merges.folder / "merged")
    with killed_at(0) as left:
        merges.merge("north", "south")
    steps = -left[0]
    assert merges.files("merged") == undisturbed
    chance = random.Random(3)
    for moment in sorted(chance.sample(range(1, steps), 6)):
        shutil.rmtree(merges.folder / "merged")
        with pytest.raises(Killed), killed_at(moment):
            merges.merge("north", "south")
        begun = merges.folder / "merged/records/contributors"
        if (begun / "fingerprint.json").exists() and not (begun / MANIFEST).exists():
            with pytest.raises(UsageError, match="has begun and not ended"):
                merges.run("north files", store="merged")
        assert merges.merge("south", "north").rows == 9
        assert merges.files("merged") == undisturbed, f"killed at {moment} of {steps}"


def test_the_scores_of_the_first_store_go_on_with_its_proxy(merges):
    merges.hospitals()
    store = merges.store("north")
    pool = store.open_pool()
    made = Fingerprint({}, "1", {"teacher": "t"}, {"pool": pool.digest})
    ids = pool.read(["image_id"])
    Claim(store.run("proxy"), made, "proxy", "a proxy").take(False)
    store.run("proxy").write("weights.safetensors", b"weights")
    finish_run(store.run("proxy"), stage="proxy", files=["weights.safetensors"], fingerprint=made)
    Claim(store.scores(), made, "score", "scores").take(False)
    extra = {"rows_in": pool.rows}
    write_table(store.scores(), ids, stage="score", fingerprint=made.as_dict(), extra=extra)
    assert "computes the others with them" in merges.merge("north", "south").describe()
    merged = merges.store("merged")
    assert version_with(merged.open_pool(), made_from_pool(merged.open_scores())).number == 1
    assert merged.open_scores().digest == store.open_scores().digest
    assert verify_store(merged.root).sound
    assert merges.table("contributors")[0]["scores"] == "kept"


@pytest.mark.slow
def test_the_commands_merge_ask_withdraw_and_verify(merges, capsys, tmp_path):
    merges.hospitals()
    store = str(merges.folder / "merged")

    def said(*words):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        assert ended.value.code == 0, capsys.readouterr().err
        return capsys.readouterr().out

    (tmp_path / "merge.yaml").write_text(
        f"stores:\n  north: {merges.folder / 'north'}\nlicence: {{north: CC0}}\n"
    )
    words = ["merge", store, "--config", str(tmp_path / "merge.yaml")]
    words += ["--from", f"south={merges.folder / 'south'}"]
    dry = said(*words, "--dry-run")
    assert not Path(store).exists()
    assert said(*words) == dry
    query = "select store, merged, duplicates, licence from contributors order by store"
    found = said("query", query, "--store", store, "--json")
    assert [list(row.values()) for row in json.loads(found)] == [
        ["north", 6, 0, "CC0"],
        ["south", 4, 1, ""],
    ]
    rows = {row["source"]: row["image_id"] for row in merges.rows("south")[0]}
    assert "store south had the same pixels" in said("why", rows["copy.png"], "--store", store)
    said("withdraw", store, "--image", rows["s5.png"], "--reason", "asked for")
    assert said("verify", store).strip().endswith("sound")
    counts = "select store, count(*) n from origins join pool using (image_id) group by store"
    found = json.loads(said("query", counts, "--store", store, "--json"))
    assert {row["store"]: row["n"] for row in found} == {"north": 6, "south": 3}


# Stores that are written row by row

ROW = st.tuples(
    st.integers(0, 30).map(lambda n: f"{n:032x}"),  # id
    st.sampled_from([f"{n:064x}" for n in range(20)]),  # content
    st.sampled_from(["g1", "g2", "g3"]),
)
STORE = st.lists(ROW, min_size=1, max_size=9, unique_by=lambda row: row[0])


def plain(kind):
    if pa.types.is_string(kind):
        return ""
    if pa.types.is_boolean(kind):
        return False
    return b"x" * kind.byte_width if pa.types.is_fixed_size_binary(kind) else 0


def write_store(root, rows, check="one key", withdrawn=(), held=()):
    """Write a pool of rows (id, content, group), three to a part, with frames that wait."""
    store = Store(str(root))
    made = Fingerprint({"stage_side": 256}, "1", {}, {"files": "f", "key check": check})
    Claim(store.pool(), made, "ingest", "a pool").take(False)
    stage = ShardedStage(
        name="ingest",
        table=store.pool(),
        quarantine=store.quarantine("ingest"),
        schema=POOL_SCHEMA,
        fingerprint=made,
        max_error_rate=1.0,
        held_back_class=NEEDS_REVIEW,
    )
    blank = {field.name: plain(field.type) for field in POOL_SCHEMA if field.name != "image"}
    records = {}
    for index, start in enumerate(range(0, len(rows), 3)):
        values = [
            {**blank, "image_id": i, "content_hash": c, "group_id": g, "image": c.encode()}
            for i, c, g in rows[start : start + 3]
        ]
        waits = [
            {
                "stage": "ingest",
                "id": i,
                "source": i,
                "error_class": NEEDS_REVIEW,
                "message": Verdict("text", cleaned="c").describe() + Context(group=g).describe(),
            }
            for i, g in (held if not start else ())
        ]
        outcome = Outcome(
            pa.Table.from_pylist(values, schema=POOL_SCHEMA),
            pa.Table.from_pylist(waits, schema=QUARANTINE_SCHEMA),
        )
        records[index] = stage.write(index, outcome)
    stage.declare(records, Accounting.of(records.values(), 0), {})
    if withdrawn:
        write_tombstones(store.storage, Tombstones().added((), withdrawn, (), (), None))
    return store


@pytest.mark.slow
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stores=st.lists(STORE, min_size=2, max_size=3),
    gone=st.sets(st.sampled_from([f"{n:064x}" for n in range(20)]), max_size=3),
    keys=st.lists(st.sampled_from(["one key", "two keys"]), min_size=3, max_size=3),
)
def test_in_is_out_and_copies_and_withdrawn_in_any_order(tmp_path, stores, gone, keys):
    folder = tmp_path / "stores"
    shutil.rmtree(folder, ignore_errors=True)
    first = [row for row in stores[0] if row[1] not in gone] or [("f" * 32, "e" * 64, "g1")]
    stores = [first, *stores[1:]]
    for number, rows in enumerate(stores):
        write_store(folder / str(number), rows, keys[number], () if number else gone)
    named = {f"s{number}": str(folder / str(number)) for number in range(len(stores))}
    done = merge(MergeConfig(store=str(folder / "merged"), stores=named))
    backwards = dict(reversed(named.items()))
    merge(MergeConfig(store=str(folder / "again"), stores=backwards))
    for one, rows in zip(done.contributors, stores, strict=True):
        assert one["rows"] == len(rows) == one["merged"] + one["duplicates"] + one["withdrawn"]
    pool = Store(str(folder / "merged")).open_pool()
    assert pool.digest == Store(str(folder / "again")).open_pool().digest
    table = pool.read(["image_id", "content_hash", "group_id"]).to_pylist()
    contents = {row[1] for rows in stores for row in rows} - gone
    assert {row["content_hash"] for row in table} == contents
    groups = {
        (keys[number], group)
        for number, rows in enumerate(stores)
        for _, content, group in rows
        if content not in gone and not any(content == o[1] for e in stores[:number] for o in e)
    }
    assert len({row["group_id"] for row in table}) == len(groups) == done.groups
    assert len({row["image_id"] for row in table}) == len(table) == done.rows
    assert verify_store(str(folder / "merged")).sound


def test_frames_that_wait_and_decisions_on_them_come_along(tmp_path):
    one = write_store(tmp_path / "one", [("1" * 32, "1" * 64, "g")], held=[("a" * 32, "g")])
    two = write_store(
        tmp_path / "two", [("2" * 32, "2" * 64, "g")], "two keys", held=[("b" * 32, "g")]
    )
    decide(one, "approve", {"a" * 32: "c"}, reason="scale marks", by="r")
    decide(two, "reject", {"b" * 32: "c"}, reason="a name", by="r")
    stores = {"one": one.root, "two": two.root}
    merge(MergeConfig(store=str(tmp_path / "merged"), stores=stores))
    merged = Store(str(tmp_path / "merged"))
    rows = {row["image_id"]: row for row in waiting(merged.root)}
    assert [rows[key * 32]["state"] for key in "ab"] == ["approved", "rejected"]
    assert rows["a" * 32]["group_id"] == "g" != rows["b" * 32]["group_id"]
    assert {row["group_id"] for row in rows.values()} == {
        row["group_id"] for row in merged.open_pool().read(["group_id"]).to_pylist()
    }
    assert latest(merged).keys() == {"a" * 32, "b" * 32}
    manifest = json.loads(merged.pool().read(MANIFEST))
    assert (manifest["rows_in"], manifest["held_back"]) == (4, 2)


@pytest.mark.slow
def test_stores_in_buckets_merge_too(object_store, monkeypatch, tmp_path):
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    rows = [("1" * 32, "1" * 64, "g"), ("2" * 32, "2" * 64, "g")]
    places = {"one": "s3://hospital/one", "two": str(tmp_path / "two")}
    for number, place in enumerate(places.values()):
        write_store(place, [rows[number], ("3" * 32, "3" * 64, "h")])
    done = merge(MergeConfig(store="s3://hospital/merged", stores=places))
    assert (done.rows, done.groups) == (3, 2)
    local = merge(MergeConfig(store=str(tmp_path / "merged"), stores=places))
    assert verify_store("s3://hospital/merged").sound
    remote = Store("s3://hospital/merged").open_pool()
    assert remote.digest == Store(local.store).open_pool().digest
    with pytest.raises(UsageError, match="one lies in the other"):
        merge(MergeConfig(store="s3://hospital/one/inside", stores=places))
