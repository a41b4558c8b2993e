import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.eval.datasets import LabelledDataset
from echostill.eval.splits import class_presence, group_split, official_split, split_dataset
from echostill.platform.errors import UsageError


def dataset(groups, labels=None, masks=None, official=None, names=("a", "b")):
    count = len(groups)
    return LabelledDataset(
        name="toy",
        kind="classification" if masks is None else "segmentation",
        files=tuple(str(k) for k in range(count)),
        groups=np.array(groups),
        pixels=np.zeros((count, 3, 8, 8), dtype=np.uint8),
        labels=None if labels is None else np.array(labels),
        masks=masks,
        class_names=names,
        official_split=None if official is None else np.array(official),
        notes=(),
    )


rows = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 2)), min_size=2, max_size=80)


@settings(deadline=None, max_examples=50)
@given(rows, st.integers(0, 5), st.sampled_from([0.2, 0.3, 0.5]))
def test_no_group_is_on_both_sides_and_every_class_is(pairs, seed, share):
    # a group may hold several labels, as near-duplicates with contradicting labels do
    groups = np.array([f"g{group}" for group, _ in pairs])
    labels = np.array([label for _, label in pairs])
    try:
        split = group_split(groups, labels, seed, share)
    except UsageError:
        single = any(len(set(groups[labels == c])) < 2 for c in set(labels))
        mixed = any(len(set(labels[groups == g])) > 1 for g in set(groups))
        assert single or mixed
        return
    assert not set(groups[split.train]) & set(groups[split.test])
    assert sorted([*split.train, *split.test]) == list(range(len(pairs)))
    for side in split:
        assert set(labels[side]) == set(labels)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 5))
def test_row_order_does_not_matter(order_seed, seed):
    generator = np.random.default_rng(3)
    groups = np.array([f"p{k}" for k in generator.integers(0, 30, 90)])
    labels = np.array([int(name[1:]) % 3 for name in groups])
    order = np.random.default_rng(order_seed).permutation(90)
    plain = group_split(groups, labels, seed)
    shuffled = group_split(groups[order], labels[order], seed)
    assert set(groups[plain.test]) == set(groups[order][shuffled.test])


def test_share_is_kept_within_each_label_and_seeds_differ():
    groups = np.array([f"p{k}" for k in range(300)])
    labels = np.array([0] * 200 + [1] * 80 + [2] * 20)
    split = group_split(groups, labels, 0, 0.3)
    assert np.bincount(labels[split.test]).tolist() == [60, 24, 6]
    assert set(split.test) != set(group_split(groups, labels, 1, 0.3).test)
    assert split.test.tolist() == group_split(groups, labels, 0, 0.3).test.tolist()


def test_share_with_large_groups():
    groups = np.repeat([f"clip{k}" for k in range(20)], np.arange(1, 21))
    labels = np.zeros(len(groups), dtype=int)
    for seed in range(5):
        assert abs(len(group_split(groups, labels, seed).test) / len(groups) - 0.3) < 0.05


def test_a_class_of_one_group_is_refused_by_name():
    data = dataset(["x", "x", "y", "z"], [1, 1, 0, 0])
    with pytest.raises(UsageError, match=r"task 'toy'.*class 'b' has 1 group"):
        split_dataset(data, 0)


def test_share_must_be_a_share():
    with pytest.raises(UsageError, match="test_share"):
        group_split(np.array(["a", "b"]), np.array([0, 0]), 0, 1.0)


def test_official_split_is_honoured():
    data = dataset(["w", "x", "y", "z"], [0, 1, 0, 1], official=["test", "train", "train", "test"])
    split = split_dataset(data, 7)
    assert split.train.tolist() == [1, 2]
    assert split.test.tolist() == [0, 3]


def test_official_split_must_not_leak_or_lose_a_class():
    with pytest.raises(UsageError, match="group 'x' on both sides"):
        official_split(np.array(["x", "x"]), np.array(["train", "test"]))
    with pytest.raises(UsageError, match="no row with 'test'"):
        official_split(np.array(["x", "y"]), np.array(["train", "train"]))
    data = dataset(["w", "x", "y"], [0, 1, 0], official=["train", "train", "test"])
    with pytest.raises(UsageError, match="test side has no image of class 'b'"):
        split_dataset(data, 0)


def test_segmentation_puts_rare_classes_on_both_sides():
    masks = np.zeros((40, 8, 8), dtype=np.uint8)
    masks[:38, :4] = 1
    masks[[3, 30], 6:] = 2
    assert class_presence(masks, 2).sum(0).tolist() == [38, 2]
    data = dataset([f"p{k}" for k in range(40)], masks=masks)
    for seed in range(5):
        split = split_dataset(data, seed)
        for side in split:
            assert class_presence(masks[side], 2).any(0).all()
