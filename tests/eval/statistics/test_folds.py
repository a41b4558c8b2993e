import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.eval.statistics.folds import group_folds
from echostill.platform.errors import UsageError


@st.composite
def labelled_groups(draw):
    groups = draw(st.integers(4, 30))
    classes = draw(st.integers(2, 4))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    group = np.repeat(np.arange(groups), random.integers(1, 5, groups))
    label = (group % classes) if draw(st.booleans()) else random.integers(0, classes, len(group))
    return np.array([f"g{g}" for g in group]), label


@settings(max_examples=60, deadline=None)
@given(data=labelled_groups(), folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_no_group_is_cut_and_every_label_is_left_to_train_on(data, folds, seed):
    groups, labels = data
    try:
        fold = group_folds(groups, labels, folds, seed)
    except UsageError:  # which test_a_class_of_one_group_is_named is about
        return
    assert set(fold) == set(range(min(folds, len(set(groups)))))
    for group in set(groups):
        assert len(set(fold[groups == group])) == 1
    for number in set(fold):
        assert set(labels[fold != number]) == set(labels)
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    assert np.array_equal(
        group_folds(groups[shuffled], labels[shuffled], folds, seed), fold[shuffled]
    )


def test_labels_are_spread_as_evenly_as_groups_of_one_image_allow():
    labels = np.repeat([0, 1, 2], [50, 23, 7])
    groups = np.array([f"g{i}" for i in range(80)])
    fold = group_folds(groups, labels, 5, seed=3)
    table = np.array([[np.sum((fold == f) & (labels == c)) for c in range(3)] for f in range(5)])
    assert (table.max(0) - table.min(0) <= 1).all()
    assert table.sum(1).max() - table.sum(1).min() <= 1
    assert not np.array_equal(fold, group_folds(groups, labels, 5, seed=4))


def test_a_class_of_one_group_is_named():
    with pytest.raises(UsageError, match=r"class 'rare' \(1 group\(s\)\)"):
        group_folds(np.array(list("abcd")), np.array([0, 0, 0, 1]), 2, 0, ("common", "rare"))
