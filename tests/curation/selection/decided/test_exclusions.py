"""What a selection leaves out, with reasons that a person can follow."""

import pyarrow as pa
import pytest

from echostill.curation.ingestion.quality import QualitySettings
from echostill.curation.selection.decided.exclusions import ExclusionSettings, exclusions
from echostill.platform.config import validate
from echostill.platform.errors import UsageError
from echostill.platform.tables.schemas import DUPLICATES_SCHEMA, LEAKS_SCHEMA, POOL_SCHEMA
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import write_table

ROWS = 8


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path / "store"))
    rows = [
        {
            "image_id": f"id{row}",
            "group_id": f"group{row // 2}",
            "blank": row == 1,
            "blank_score": 0.01 if row == 1 else 0.5,
            "dark": row in (1, 2),
            "dark_score": 0.1 if row in (1, 2) else 0.3,
        }
        for row in range(ROWS)
    ]
    table = pa.Table.from_pylist(rows, schema=POOL_SCHEMA)
    write_table(store.pool(), table, stage="ingest", fingerprint={})
    return store


def record(store, pool=None):
    """Write tables of findings: id3 copies id2, id4 is in a benchmark."""
    inputs = {"inputs": {"pool": pool or store.open_pool().digest}}
    copies = [
        {"image_id": "id2", "kept": True, "kept_id": "id2", "reason": "kept: stands for copies"},
        {"image_id": "id3", "kept": False, "kept_id": "id2", "reason": "near copy of id2"},
    ]
    table = pa.Table.from_pylist(copies, schema=DUPLICATES_SCHEMA)
    write_table(store.duplicates(), table, stage="duplicates", fingerprint=inputs)
    leaks = [{"image_id": "id4", "benchmark": "liver", "reason": "exact copy of 'x.png'"}]
    table = pa.Table.from_pylist(leaks, schema=LEAKS_SCHEMA)
    write_table(store.leaks(), table, stage="leakcheck", fingerprint=inputs)


def pairs(store, **settings):
    table = exclusions(store, ExclusionSettings(**settings))
    return list(zip(table["image_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_nothing_is_left_out_unasked(store):
    assert pairs(store) == []


def test_copies_and_leaks_are_left_out_once_they_were_looked_for(store):
    record(store)
    assert pairs(store) == [("id3", "near copy of id2"), ("id4", "exact copy of 'x.png'")]
    assert pairs(store, exclude_duplicates=False) == [("id4", "exact copy of 'x.png'")]
    assert pairs(store, exclude_leaks=False) == [("id3", "near copy of id2")]


def test_the_group_of_a_leak_when_asked(store):
    record(store)
    found = pairs(store, exclude_leaked_groups=True, exclude_duplicates=False)
    assert found[1] == ("id5", "of one group with id4, which is in a benchmark")
    assert [image for image, _ in found] == ["id4", "id5"]


def test_flags_when_named_and_each_reason_in_its_own_row(store):
    found = pairs(store, exclude_flags=("dark", "blank", "dark"))
    assert found == [
        ("id1", "flagged blank (score 0.01)"),
        ("id1", "flagged dark (score 0.1)"),
        ("id2", "flagged dark (score 0.1)"),
    ]


def test_other_thresholds_need_no_second_ingest(store):
    found = pairs(store, exclude_flags=("dark",), quality=QualitySettings(dark=0.31))
    assert [image for image, _ in found] == [f"id{row}" for row in range(ROWS)]
    assert pairs(store, exclude_flags=("dark",), quality=QualitySettings(dark=0.0)) == []


def test_only_some_values_of_a_column_may_be_chosen(store):
    table = store.open_pool().read()
    organ = pa.array(["liver", "heart", "liver", None, *["lung"] * 4])
    place = table.column_names.index("organ")
    write_table(
        store.pool(), table.set_column(place, "organ", organ), stage="ingest", fingerprint={}
    )
    found = pairs(store, only={"organ": ("liver", "lung")})
    assert found == [
        ("id1", "organ 'heart' is not among those asked for"),
        ("id3", "organ '' is not among those asked for"),
    ]
    both = pairs(store, only={"organ": ("liver", ""), "group_id": ("group0", "group1")})
    assert {image for image, _ in both} == {"id1", "id4", "id5", "id6", "id7"}
    with pytest.raises(UsageError, match=r"no image of the pool has organ 'livr'\. Did you mean"):
        pairs(store, only={"organ": ("livr",)})
    with pytest.raises(UsageError, match=r"no column 'organs'.*Did you mean 'organ'"):
        pairs(store, only={"organs": ("liver",)})
    with pytest.raises(UsageError, match="no column 'image'"):
        pairs(store, only={"image": ("liver",)})


def test_findings_about_another_pool_are_refused(store):
    record(store, pool="another")
    with pytest.raises(UsageError, match=r"echostill (leakcheck|duplicates)` again"):
        pairs(store)
    assert pairs(store, exclude_duplicates=False, exclude_leaks=False) == []


def test_an_unknown_flag_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'blurred'"):
        validate(ExclusionSettings, {"exclude_flags": ["blured"]})


def test_a_pool_without_flags_is_refused_only_when_they_are_asked_for(store):
    bare = store.open_pool().read(["image_id", "group_id"])
    write_table(store.pool(), bare, stage="ingest", fingerprint={})
    assert pairs(store) == []
    with pytest.raises(UsageError, match="no quality flags"):
        pairs(store, exclude_flags=("dark",))
