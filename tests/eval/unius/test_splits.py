"""Splits of prepared sets: no group is cut, rows in any order, only read back whole."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.eval.unius.splits import (
    FOLDS,
    check_groups,
    encode_split,
    make_split,
    read_split,
)
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.tables.storage import Storage


def rows(groups, labels, split=None, fold=None):
    return [
        {
            "id": f"{number:04d}",
            "group": f"g{group}",
            "label": label,
            "structures": "",
            "split": split[number] if split else "",
            "fold": fold[number] if fold else "",
        }
        for number, (group, label) in enumerate(zip(groups, labels, strict=True))
    ]


def drawn(count, seed, per_group=4, kinds=3):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, max(count // per_group, 1), count).tolist()
    return rows(groups, [f"c{kind}" for kind in rng.integers(0, kinds, count)])


@settings(max_examples=40)
@given(st.integers(1, 150), st.integers(0, 10_000), st.integers(1, 5), st.booleans())
def test_nothing_is_cut_or_lost_and_the_order_does_not_matter(count, seed, per_group, folds):
    given_rows = drawn(count, seed, per_group)
    split = make_split(given_rows, test_fold="", folds=folds)
    assert split == make_split(given_rows[::-1], test_fold="", folds=folds)
    group_of = {row["id"]: row["group"] for row in given_rows}
    for parts in (split.sides, split.folds):
        where = {}
        for name, ids in parts.items():
            for row in ids:
                assert where.setdefault(group_of[row], name) == name
    assert sorted(i for ids in split.sides.values() for i in ids) == sorted(group_of)
    if split.folds:
        assert sorted(i for ids in split.folds.values() for i in ids) == sorted(group_of)


def test_shares_are_seven_one_two_in_every_class():
    labels = ["a"] * 700 + ["b"] * 200 + ["c"] * 100
    split = make_split(rows(range(1000), labels), test_fold="", folds=True)
    assert (split.kind, split.folds_kind) == ("drawn", "drawn")
    of = dict(zip((f"{n:04d}" for n in range(1000)), labels, strict=True))
    for side, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        counts = Counter(of[row] for row in split.sides[side])
        assert counts == pytest.approx(
            {"a": 700 * share, "b": 200 * share, "c": 100 * share}, abs=2
        )
    assert [len(ids) for ids in split.folds.values()] == [200] * FOLDS


def test_an_official_split_is_kept_and_lacks_only_its_validation():
    sides = ["train"] * 80 + ["test"] * 20
    split = make_split(rows(range(100), ["a", "b"] * 50, sides), test_fold="", folds=False)
    assert split.kind == "official"
    assert split.sides["test"] == tuple(f"{n:04d}" for n in range(80, 100))
    assert len(split.sides["val"]) == 10
    assert "val is drawn" in split.note
    with_val = ["train"] * 70 + ["val"] * 10 + ["test"] * 20
    split = make_split(rows(range(100), ["a", "b"] * 50, with_val), test_fold="", folds=False)
    assert [len(split.sides[side]) for side in ("train", "val", "test")] == [70, 10, 20]
    assert split.note == ""


def test_an_official_fold_is_the_test_side():
    held = [str(number % 5 + 1) for number in range(100)]
    split = make_split(rows(range(100), ["a"] * 100, fold=held), test_fold="1", folds=True)
    assert (split.kind, split.folds_kind) == ("official fold", "official")
    assert split.sides["test"] == split.folds["1"] == tuple(f"{n:04d}" for n in range(0, 100, 5))


def test_one_group_gives_no_split_and_says_why():
    split = make_split(rows([0] * 5, ["a"] * 5), test_fold="", folds=True)
    assert (split.kind, split.folds_kind) == ("none", "none")
    assert "too few groups" in split.describe()


def test_a_cut_group_is_refused():
    split = make_split(rows([0, 1, 2, 3], ["a"] * 4), test_fold="", folds=False)
    with pytest.raises(EchostillError, match="the group 'g' is in two sides"):
        check_groups(split, dict.fromkeys(("0000", "0001", "0002", "0003"), "g"))


def test_it_is_read_back_unless_it_was_changed(tmp_path):
    storage = Storage(str(tmp_path))
    split = make_split(drawn(60, 1), test_fold="", folds=True)
    storage.write("splits.json", encode_split(split, "mine", "digest"))
    assert read_split(storage, "splits.json", "digest") == split
    with pytest.raises(UsageError, match="the split of another table"):
        read_split(storage, "splits.json", "other")
    document = json.loads(storage.read("splits.json"))
    document["sides"]["train"].append(document["sides"]["test"].pop())
    storage.write("splits.json", json.dumps(document).encode())
    with pytest.raises(UsageError, match="was changed"):
        read_split(storage, "splits.json", "digest")
    for data in (b"not JSON", b"{}", b"[]"):
        storage.write("splits.json", data)
        with pytest.raises(UsageError, match="is not a split"):
            read_split(storage, "splits.json", "digest")
    with pytest.raises(UsageError, match="does not exist"):
        read_split(storage, "missing.json", "digest")
