"""Tombstones refuse what was withdrawn, outlive a reading back, and reveal nothing."""

import json

from echostill.platform.tables.storage import Storage
from echostill.platform.withdrawal.state import TOMBSTONES
from echostill.platform.withdrawal.tombstones import (
    Tombstones,
    read_tombstones,
    write_tombstones,
)

KEY, OTHER_KEY = b"a key of sixteen bytes", b"another key of sixteen"
ROW = {"image_id": "new", "content_hash": "new", "group_id": "new"}


def made(key=KEY):
    return Tombstones().added(["an id"], ["pixels"], ["bytes"], ["a group"], key)


def test_ids_contents_and_groups_are_refused():
    for column, value in (
        ("image_id", "an id"),
        ("content_hash", "pixels"),
        ("group_id", "a group"),
    ):
        assert made().refusal({**ROW, column: value}, KEY)
    assert made().refusal({"id": "an id"}, KEY)
    assert not made().refusal(ROW, KEY)


def test_a_group_needs_the_users_key():
    row = {**ROW, "group_id": "a group"}
    assert not made().refusal(row, OTHER_KEY)
    assert not made(key=None).refusal(row, KEY)
    assert made(key=None).refusal({**ROW, "image_id": "an id"}, OTHER_KEY)


def test_they_are_read_back_and_added_to_under_one_salt(tmp_path):
    storage = Storage(str(tmp_path))
    assert not read_tombstones(storage)
    first = made()
    write_tombstones(storage, first)
    assert read_tombstones(storage) == first
    second = read_tombstones(storage).added(["another id"], [], [], [], None)
    assert second.salt == first.salt
    assert second.marks > first.marks
    assert second.groups == first.groups
    kept = storage.read(TOMBSTONES).decode()
    assert not any(name in kept for name in ("an id", "pixels", "a group"))
    assert all(len(mark) == 32 for mark in json.loads(kept)["marks"])
    assert made().salt != first.salt  # the same id has another digest in another store


def test_those_of_several_stores_are_one(tmp_path):
    other = Tombstones().added(["other id"], (), (), ["other group"], OTHER_KEY)
    both = Tombstones.united([Tombstones(), made(), Tombstones.united([other, made()])])
    storage = Storage(str(tmp_path))
    write_tombstones(storage, both)
    kept = read_tombstones(storage)
    assert kept == both
    assert kept.refusal({**ROW, "image_id": "other id"}, KEY)
    assert kept.refusal({**ROW, "group_id": "other group"}, OTHER_KEY)
    assert kept.refusal({**ROW, "group_id": "a group"}, KEY)
    assert not kept.refusal(ROW, KEY)
    more = kept.added(["third"], (), (), (), None)
    assert all(more.refusal({"id": name}, KEY) for name in ("an id", "other id", "third"))
    assert not Tombstones.united([Tombstones(), Tombstones()])
