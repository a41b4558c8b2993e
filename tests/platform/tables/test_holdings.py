import pytest

from echostill.platform.errors import UsageError
from echostill.platform.tables.holdings import NOT_HERE, find_holding, holdings
from echostill.platform.tables.store import Store


def test_a_store_says_what_was_made_from_what(linked_store):
    store = linked_store()
    found = {holding.place: holding for holding in holdings(store)}
    assert sorted(found) == [
        "coresets/default",
        "coresets/half",
        "reports/default",
        "runs/student-0",
    ]
    assert found["coresets/default"].made_from == {"pool": "pool", "scores": NOT_HERE}
    assert found["coresets/default"].used_by == ("runs/student-0",)
    assert found["coresets/half"].used_by == ()
    assert found["runs/student-0"].used_by == ("reports/default",)
    assert all(holding.finished and holding.size > 0 for holding in found.values())
    line = found["coresets/default"].describe()
    assert "used by runs/student-0" in line
    assert "not in the store: scores" in line
    assert [holding.name for holding in holdings(store, "coresets")] == ["default", "half"]


def test_an_unfinished_result_is_listed_as_such(linked_store):
    store = linked_store()
    store.coreset("half").delete("manifest.json")
    half = find_holding(store, "coresets/half")
    assert not half.finished
    assert "NOT FINISHED" in half.describe()


def test_records_without_their_table_are_none(linked_store):
    store = linked_store()
    store.storage.delete("coresets/half")
    assert [holding.name for holding in holdings(store, "coresets")] == ["default"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("coresets/hlaf", "Did you mean 'coresets/half'"),
        ("half", "expected one of coresets/NAME"),
        ("pool", "expected one of coresets/NAME"),
        ("coresets/../pool", "cannot be a name"),
        ("coresets/", "expected one of"),
    ],
)
def test_a_wrong_place_is_named(linked_store, place, message):
    with pytest.raises(UsageError, match=message):
        find_holding(linked_store(), place)


def test_no_store(tmp_path):
    with pytest.raises(UsageError, match="there is no store"):
        holdings(Store(str(tmp_path / "none")))
