import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.datasets.chosen import open_chosen
from echostill.curation.datasets.splits import described, read_shares, split_by_group
from echostill.platform.errors import UsageError


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=1, max_size=60),
    st.integers(2, 4),
    st.integers(0, 5),
)
def test_no_group_is_divided_and_no_side_is_empty(rows, count, seed):
    groups = np.array([group for group, _ in rows])
    classes = [name for _, name in rows]
    shares = {f"side{number}": 1 / count for number in range(count)}
    if len(set(groups)) < count:
        with pytest.raises(UsageError, match="never divided"):
            split_by_group(groups, classes, shares, seed)
        return
    sides = np.array(split_by_group(groups, classes, shares, seed))
    assert set(sides) == set(shares)
    assert all(len(set(sides[groups == group])) == 1 for group in set(groups))


def test_classes_are_shared_out_as_asked():
    groups = np.arange(400) // 2
    classes = [("rare" if group % 10 == 0 else "common") for group in groups]
    sides = np.array(split_by_group(groups, classes, {"train": 0.8, "test": 0.2}, 0))
    for name in ("rare", "common"):
        own = sides[np.array(classes) == name]
        assert abs((own == "test").mean() - 0.2) <= 2 / len(own)


def test_copies_in_two_groups_are_on_one_side(coreset_store):
    chosen = open_chosen(coreset_store.root, "default")
    for seed in range(10):
        table = described(chosen, None, {"train": 0.5, "test": 0.5}, seed)
        side = dict(zip(table["group_id"].to_pylist(), table["split"].to_pylist(), strict=True))
        assert side["clip0"] == side["clip7"]


@pytest.mark.parametrize(
    "texts", [["train"], ["train=x"], ["train=0"], ["a=0.5", "a=0.5"], ["a/b=1"], ["a=0.5"]]
)
def test_what_is_no_split_is_refused(texts):
    with pytest.raises(UsageError, match=r"train=0\.8|expected 1"):
        read_shares(texts)


def test_a_wrong_class_column_is_named(coreset_store):
    with pytest.raises(UsageError, match="'colour' is not valid: expected label"):
        described(open_chosen(coreset_store.root, "default"), "colour", {"train": 1.0}, 0)
