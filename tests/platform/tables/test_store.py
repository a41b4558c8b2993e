"""The format of a store: noted, and refused where a later release wrote it."""

import json

import pytest

from echostill.platform.errors import EchostillError
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.holdings import holdings
from echostill.platform.tables.store import FORMAT, Store, finish_run, read_manifest
from echostill.platform.tables.table import FORMAT_VERSION, MANIFEST
from echostill.platform.tables.verify import verify_store


def test_a_store_without_a_note_is_of_the_first_format(linked_store):
    store = linked_store()
    assert not store.storage.exists(FORMAT)
    assert len(holdings(Store(store.root))) == 4
    store.record_format()
    noted = json.loads(store.storage.read(FORMAT))
    assert noted["format_version"] == FORMAT_VERSION
    assert noted["written_by"]
    assert verify_store(store.root).sound


def test_a_later_store_is_refused_before_anything_is_read(linked_store):
    store = linked_store()
    later = {"format_version": FORMAT_VERSION + 1, "written_by": "9.9"}
    store.storage.write(FORMAT, json.dumps(later).encode())
    words = rf"format {FORMAT_VERSION + 1}, written by echostill 9\.9.*upgrade echostill"
    for call in (Store, verify_store):
        with pytest.raises(EchostillError, match=words):
            call(store.root)
    # Nor does one that was opened before lower it.
    store.record_format()
    assert json.loads(store.storage.read(FORMAT)) == later


@pytest.mark.parametrize("wrong", [None, "1", 0, -1, 1.5, True])
def test_a_format_that_is_none_is_named(linked_store, wrong):
    store = linked_store()
    store.storage.write(FORMAT, json.dumps({"format_version": wrong}).encode())
    with pytest.raises(EchostillError, match="unknown format"):
        Store(store.root)


def test_a_run_of_a_later_format_is_refused(tmp_path):
    store = Store(str(tmp_path))
    run = store.run("student-0")
    run.write("model.safetensors", b"weights")
    wanted = Fingerprint({}, "8.8", {}, {})
    finish_run(run, stage="distill", files=["model.safetensors"], fingerprint=wanted)
    assert read_manifest(run)["format_version"] == FORMAT_VERSION
    values = {**json.loads(run.read(MANIFEST)), "format_version": FORMAT_VERSION + 1}
    run.write(MANIFEST, json.dumps(values).encode())
    with pytest.raises(EchostillError, match=r"written by echostill 8\.8"):
        read_manifest(run)
