"""After a withdrawal results follow tables to new digests, and refusals say why."""

import json

import pyarrow as pa
import pytest

from echostill.platform.errors import UsageError
from echostill.platform.tables.fingerprint import FINGERPRINT, Claim, Fingerprint
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table, write_table
from echostill.platform.withdrawal.links import explain_withdrawal, follow, note_withdrawal


def test_a_result_follows_and_its_fingerprint_stays_true(tmp_path):
    store = Store(str(tmp_path))
    before = Fingerprint({"seed": 0}, "1", {"teacher": "a"}, {"pool": "old", "scores": "s"})
    storage = store.coreset("default")
    kept = {**before.as_dict(), "about": {"inputs.pool": "9 images"}, "stage": "select"}
    storage.write(FINGERPRINT, json.dumps(kept).encode())
    rows = pa.table({"image_id": ["a"]})
    write_table(storage, rows, stage="select", fingerprint=before.as_dict())
    follow(storage, {"old": "new"}, {"withdrawn": "w-000001"}, "1 image was withdrawn")
    inputs = {"pool": "new", "scores": "s", "withdrawn": "w-000001"}
    wanted = Fingerprint({"seed": 0}, "1", {"teacher": "a"}, inputs)
    values = json.loads(storage.read(FINGERPRINT))
    assert values["digest"] == wanted.digest
    assert values["inputs"] == inputs
    assert values["about"]["inputs.withdrawn"] == "1 image was withdrawn"
    assert json.loads(storage.read(MANIFEST))["fingerprint"] == wanted.as_dict()


def test_a_run_that_has_seen_it_is_refused_with_the_reason(tmp_path):
    store = Store(str(tmp_path))
    rows = pa.table({"image_id": ["a", "b", "c"], "selected": [True, True, False]})
    write_table(store.coreset("default"), rows, stage="select", fingerprint={})
    table = store.open_coreset("default")
    run = store.run("student-0")
    made = Fingerprint({}, "1", {}, {"coreset": table.digest})
    Claim(run, made, "distill", "a run").take(False)
    entry = {"number": "w-000001", "at": "2026-11-27T10:00:00Z", "rows": 1, "chosen": 1}
    write_table(store.coreset("default"), rows.slice(1), stage="select", fingerprint={})
    note_withdrawal(store.coreset("default"), {**entry, "digest": table.digest})
    note_withdrawal(store.coreset("default"), {**entry, "digest": "again"})  # the same number
    changed = store.open_coreset("default")
    assert len(changed.manifest["withdrawn"]) == 1
    explained = explain_withdrawal(run, {"coreset": changed})
    wanted = Fingerprint({}, "1", {}, {"coreset": changed.digest})
    claim = Claim(run, wanted, "distill", "a run", explained=explained)
    reason = "1 image was withdrawn, 1 of them chosen, on 2026-11-27, after this was made from it"
    with pytest.raises(UsageError, match=f"coreset: {reason}"):
        claim.take(False)


def test_another_difference_is_explained_by_nothing(tmp_path):
    store = Store(str(tmp_path))
    write_table(store.pool(), pa.table({"image_id": ["a"]}), stage="ingest", fingerprint={})
    run = store.run("student-0")
    Claim(run, Fingerprint({}, "1", {}, {"pool": "other"}), "distill", "a run").take(False)
    assert explain_withdrawal(run, {"pool": Table.open(store.pool(), "ingest")}) == {}
    assert explain_withdrawal(store.run("none"), {}) == {}
