"""Decisions on frames held back: the latest one on these very pixels counts."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.deidentification import decisions
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import encode_parquet

FRAMES = ["a", "b", "c"]
PIXELS = {"a": "1", "b": "2", "c": "3"}


@given(
    st.lists(
        st.tuples(st.sampled_from(["approve", "reject", "undo"]), st.sets(st.sampled_from(FRAMES))),
        max_size=6,
    )
)
def test_the_latest_counts(tmp_path_factory, calls):
    store = Store(str(tmp_path_factory.mktemp("decisions")))
    expected = dict.fromkeys(FRAMES, "open")
    for decision, chosen in calls:
        cleaned = {name: PIXELS[name] for name in chosen}
        decisions.record(store, decision, cleaned, reason="seen", by="me")
        expected.update(dict.fromkeys(chosen, decisions.STATES[decision]))
    decided = decisions.latest(store)
    rows = [{"image_id": name, "cleaned": PIXELS[name]} for name in FRAMES]
    found = {row["image_id"]: decisions.state_of(row, decided)["state"] for row in rows}
    assert found == expected
    approved = {name: PIXELS[name] for name in FRAMES if expected[name] == "approved"}
    assert decisions.approved_pixels(store) == approved


def test_a_decision_is_on_these_pixels(tmp_path):
    store = Store(str(tmp_path))
    decisions.record(store, "approve", {"a": "1"}, reason="seen", by="me")
    decided = decisions.latest(store)
    assert decisions.state_of({"image_id": "a", "cleaned": "1"}, decided)["state"] == "approved"
    assert decisions.state_of({"image_id": "a", "cleaned": "9"}, decided)["state"] == "open"


def test_files_of_earlier_releases_are_approvals(tmp_path):
    store = Store(str(tmp_path))
    row = {"image_id": "a", "cleaned": "1", "by": "me", "at": "2026-01-01", "reason": "seen"}
    data = encode_parquet(pa.Table.from_pylist([row]))
    decisions.decisions_storage(store).write("2026-01-01T000000-0.parquet", data)
    assert decisions.approved_pixels(store) == {"a": "1"}


def test_a_decision_needs_a_reason(tmp_path):
    with pytest.raises(UsageError, match="needs a reason"):
        decisions.record(Store(str(tmp_path)), "reject", {"a": "1"}, reason=" ", by="me")
