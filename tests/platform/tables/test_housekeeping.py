import json
import shutil
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from echostill.platform.errors import UsageError
from echostill.platform.tables import housekeeping
from echostill.platform.tables.fingerprint import FINGERPRINT
from echostill.platform.tables.holdings import find_holding, holdings
from echostill.platform.tables.housekeeping import (
    collect_waste,
    delete_result,
    find_waste,
    rename_result,
)
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import MANIFEST
from echostill.platform.tables.verify import verify_store


def test_what_others_were_made_from_is_kept_unless_forced(linked_store):
    store = linked_store()
    with pytest.raises(UsageError, match="runs/student-0 was made from 'coresets/default'"):
        delete_result(store, "coresets/default")
    assert find_holding(store, "coresets/default").finished
    delete_result(store, "coresets/default", force=True)
    assert [holding.place for holding in holdings(store, "coresets")] == ["coresets/half"]
    assert verify_store(store.root).sound
    assert find_holding(store, "runs/student-0").finished


def test_an_interrupted_deletion_is_finished_by_the_same_call(linked_store, monkeypatch):
    store = linked_store()
    delete = Storage.delete
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "delete", interrupted_at(delete, FINGERPRINT))
        with pytest.raises(KeyboardInterrupt):
            delete_result(store, "coresets/half")
    assert not find_holding(store, "coresets/half").finished
    assert verify_store(store.root).sound
    delete_result(store, "coresets/half")
    assert not store.coreset("half").exists()


def interrupted_at(call, name):
    def interrupted(storage, file, *rest):
        if file == name:
            raise KeyboardInterrupt
        return call(storage, file, *rest)

    return interrupted


def test_a_renamed_coreset_is_what_its_stage_would_write(linked_store):
    store = linked_store()
    before = store.open_coreset("half").read()
    assert rename_result(store, "coresets/half", "autumn 2026") == "coresets/autumn 2026"
    renamed = store.open_coreset("autumn 2026")
    assert renamed.read().equals(before)
    values = json.loads(renamed.storage.read(FINGERPRINT))
    assert values["configuration"] == {"name": "autumn 2026"}
    assert values["digest"] == linked_store.fingerprint("autumn 2026", values["inputs"]).digest
    assert renamed.manifest["fingerprint"]["digest"] == values["digest"]
    assert not store.coreset("half").exists()
    assert verify_store(store.root).sound


@pytest.mark.parametrize("write", range(1, 6))
def test_an_interrupted_renaming_is_finished_by_the_same_call(linked_store, monkeypatch, write):
    store = linked_store()
    rows = store.open_coreset("half").read()
    with monkeypatch.context() as patch:
        original, count = Storage.write, 0

        def interrupted(storage, name, data):
            nonlocal count
            count += 1
            if count == write:  # of the mark, the part, and three files about it
                raise KeyboardInterrupt
            original(storage, name, data)

        patch.setattr(Storage, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rename_result(store, "coresets/half", "third")
    assert verify_store(store.root).sound
    rename_result(store, "coresets/half", "third")
    assert store.open_coreset("third").read().equals(rows)
    assert not store.coreset("half").exists()
    assert verify_store(store.root).sound


def test_a_renaming_interrupted_between_copy_and_deletion(linked_store, monkeypatch):
    store = linked_store()

    def interrupted(storage):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(housekeeping, "_delete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rename_result(store, "coresets/half", "third")
    rename_result(store, "coresets/half", "third")
    assert [holding.name for holding in holdings(store, "coresets")] == ["default", "third"]
    assert verify_store(store.root).sound


@pytest.mark.parametrize(
    ("place", "name", "message"),
    [
        ("coresets/half", "default", "exists"),
        ("coresets/half", "half", "exists"),
        ("coresets/half", "a/b", "cannot be a name"),
        ("runs/student-0", "other", "student and seed"),
    ],
)
def test_what_cannot_be_renamed(linked_store, place, name, message):
    store = linked_store()
    with pytest.raises(UsageError, match=message):
        rename_result(store, place, name)
    assert verify_store(store.root).sound


def test_waste_is_what_nothing_needs(linked_store):
    store = linked_store()
    assert find_waste(store) == []
    store.storage.write("cache/abc.npy", b"0" * 100)
    store.run("student-1").write("metrics.jsonl", b"{}")
    linked_store.remake_pool(store)  # both coresets are of another pool now; one is in use
    found = {waste.place: waste.reason for waste in find_waste(store)}
    assert found.keys() == {"cache", "runs/student-1", "coresets/half"}
    assert "another pool" in found["coresets/half"]
    collect_waste(store, find_waste(store))
    assert find_waste(store) == []
    assert find_holding(store, "coresets/default").finished


NAMES = st.sampled_from(["a", "b", "c d", "é"])


class Housekeeping(RuleBasedStateMachine):
    """Whatever is made, deleted and renamed, in any order, the store is sound."""

    made = Bundle("made")
    linked_store = None

    def __init__(self):
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = self.linked_store(self.folder)

    @rule(target=made, name=NAMES)
    def make(self, name):
        self.linked_store.add_coreset(self.store, name)
        return f"coresets/{name}"

    @rule(target=made, place=made, name=NAMES)
    def rename(self, place, name):
        try:
            return rename_result(self.store, place, name)
        except UsageError:
            return place

    @rule(place=made, force=st.booleans())
    def delete(self, place, force):
        try:
            delete_result(self.store, place, force=force)
        except UsageError:
            return
        assert place not in {holding.place for holding in holdings(self.store)}

    @rule(place=made)
    def train(self, place):
        name = place.partition("/")[2]
        if self.store.coreset(name).exists(MANIFEST):
            self.linked_store.add_run(self.store, name, "student-1")

    @rule()
    def collect(self):
        collect_waste(self.store, find_waste(self.store))

    @invariant()
    def sound(self):
        assert verify_store(self.store.root).sound

    def teardown(self):
        shutil.rmtree(self.folder)


def test_any_order_of_operations_leaves_a_sound_store(linked_store):
    Housekeeping.linked_store = linked_store
    case = Housekeeping.TestCase
    case.settings = settings(max_examples=15, stateful_step_count=10, deadline=None)
    case().runTest()
