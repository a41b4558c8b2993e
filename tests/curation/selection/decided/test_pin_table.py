import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from echostill.curation.selection.decided.pin_table import (
    add_pin,
    in_force,
    read_pins,
    remove_pin,
    selection_tables,
)
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, write_table
from echostill.platform.tables.verify import verify_store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_nothing_is_pinned_at_first(store):
    assert read_pins(store) == []
    excluded, pinned = selection_tables(store)
    assert excluded.num_rows == pinned.num_rows == 0
    assert excluded.column_names == ["image_id", "reason"]


def test_the_last_act_on_an_image_counts(store):
    add_pin(store, "ban", ["a", "b"], author="anna", reason="phantom", coreset="x", cluster=3)
    kept = add_pin(store, "pin", ["b"], author="ben", reason="typical  view")
    excluded, pinned = selection_tables(store)
    assert excluded.to_pylist() == [{"image_id": "a", "reason": "banned by anna: phantom"}]
    assert pinned.to_pylist() == [{"image_id": "b", "reason": "pinned by ben: typical view"}]
    removed = remove_pin(store, kept.pin_id, author="anna", reason="no")
    assert removed.removed is not None
    assert removed.removed["author"] == "anna"
    # Taken back, the earlier act counts again.
    assert selection_tables(store)[0]["image_id"].to_pylist() == ["a", "b"]
    assert [pin.pin_id for pin in read_pins(store)] == ["p-000001", "p-000002"]
    assert in_force(read_pins(store))["b"].cluster == 3
    assert verify_store(store.root).sound


@pytest.mark.parametrize(
    ("action", "ids", "author", "reason", "words"),
    [
        ("pinn", ["a"], "x", "y", "Did you mean 'pin'"),
        ("pin", [], "x", "y", "nothing to pin"),
        ("pin", ["a"], " ", "y", "author is empty"),
        ("pin", ["a"], "x", "\n", "reason is empty"),
        ("pin", ["a"], "x" * 201, "y", "at most 200"),
        ("pin", ["a"], "x", "y\x07z", "not printable"),
    ],
)
def test_a_pin_says_who_and_why(store, action, ids, author, reason, words):
    with pytest.raises(UsageError, match=words):
        add_pin(store, action, ids, author=author, reason=reason)
    assert not store.pins().exists(MANIFEST)


def test_what_is_not_pinned_cannot_be_taken_back(store):
    with pytest.raises(UsageError, match="no pin"):
        remove_pin(store, "p-000001", author="x", reason="y")
    pin = add_pin(store, "pin", ["a"], author="x", reason="y")
    remove_pin(store, pin.pin_id, author="x", reason="y")
    with pytest.raises(UsageError, match="already removed by x"):
        remove_pin(store, pin.pin_id, author="x", reason="y")
    with pytest.raises(UsageError, match="no pin 'p-000002'"):
        remove_pin(store, "p-000002", author="x", reason="a removal is no pin")


def test_nothing_is_lost_when_the_process_is_killed_between_part_and_manifest(store):
    add_pin(store, "pin", ["a"], author="x", reason="first")
    code = (
        "import os, sys\n"
        "from echostill.curation.selection.decided import pin_table\n"
        "from echostill.platform.tables.store import Store\n"
        "pin_table.write_manifest = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        "pin_table.add_pin(Store(sys.argv[1]), 'ban', ['b'], author='x', reason='lost')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, store.root], env=os.environ)
    assert done.returncode == -9
    assert len(store.pins().list()) >= 3  # a part that no manifest names lies there
    assert [pin.reason for pin in read_pins(store)] == ["first"]
    add_pin(store, "ban", ["c"], author="x", reason="second")
    assert [pin.reason for pin in read_pins(store)] == ["first", "second"]
    assert verify_store(store.root).sound


def test_writers_wait_for_each_other(store):
    with ThreadPoolExecutor(8) as pool:
        futures = [
            pool.submit(add_pin, store, "pin", [f"i{n}"], author="x", reason=f"r{n}")
            for n in range(24)
        ]
        found = sorted(future.result().pin_id for future in futures)
    assert found == [f"p-{n:06d}" for n in range(1, 25)]
    assert {pin.reason for pin in read_pins(store)} == {f"r{n}" for n in range(24)}


def test_another_table_is_not_touched(store):
    import pyarrow as pa

    write_table(store.pool(), pa.table({"a": [1]}), stage="ingest", fingerprint={})
    before = store.pool().list()
    add_pin(store, "pin", ["a"], author="x", reason="y")
    assert store.pool().list() == before
