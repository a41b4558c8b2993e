from itertools import product

import numpy as np
import pytest
from scipy import stats

from echostill.eval.metrics import balanced_accuracy
from echostill.eval.statistics.bootstrap import (
    Resampled,
    difference,
    estimate,
    group_weights,
    mean_of,
    mean_sums,
    recall_sums,
)
from echostill.platform.errors import UsageError


def sample(seed=0, groups=40, trainings=2, classes=3):
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), random.integers(1, 4, groups))
    labels = random.integers(0, classes, len(group))
    predictions = np.where(
        random.random((trainings, len(group))) < 0.6,
        labels,
        random.integers(0, classes, (trainings, len(group))),
    )
    return np.array([f"g{g:03d}" for g in group]), labels, predictions


def test_draws_are_the_metric_of_the_rows_drawn():
    groups, labels, predictions = sample()
    sums = recall_sums(labels, predictions, groups, 3)
    weights = group_weights(len(sums.names), 20, 5, "breast")
    drawn = sums.values(weights)
    for draw, counts in enumerate(weights):
        rows = np.concatenate(
            [
                np.flatnonzero(groups == name)
                for name, count in zip(sums.names, counts, strict=True)
                for _ in range(int(count))
            ]
        )
        for training, predicted in enumerate(predictions):
            expected = balanced_accuracy(labels[rows], predicted[rows])
            assert drawn[training, draw] == pytest.approx(expected, abs=1e-12)


def test_a_class_that_was_not_drawn_is_left_out():
    groups, labels = np.array(["a", "b", "c"]), np.array([0, 0, 1])
    sums = recall_sums(labels, np.array([[0, 1, 0]]), groups, 2)
    assert sums.values(np.array([[2.0, 1.0, 0.0]]))[0, 0] == pytest.approx(2 / 3)
    assert sums.observed()[0] == pytest.approx(0.25)
    assert sums.smallest() == 1


def test_groups_are_drawn_as_often_as_there_are_groups():
    weights = group_weights(30, 4000, 1)
    assert (weights.sum(1) == 30).all()
    assert weights.mean(0) == pytest.approx(np.ones(30), abs=0.1)
    assert np.array_equal(weights, group_weights(30, 4000, 1))
    assert not np.array_equal(weights, group_weights(30, 4000, 1, "another set"))


def test_error_is_that_of_the_delta_method():
    groups, labels, predictions = sample(3, groups=150, trainings=1)
    found = estimate(recall_sums(labels, predictions, groups, 3), draws=8000)
    # d(mean of recalls) = sum over classes of (hits - recall x rows) / (C x rows of the class)
    influence = np.zeros(len(labels))
    for c in range(3):
        own = labels == c
        hit = (predictions[0] == c)[own]
        influence[own] = (hit - hit.mean()) / (3 * own.sum())
    by_group = np.array([influence[groups == name].sum() for name in np.unique(groups)])
    assert found.error == pytest.approx(np.sqrt((by_group**2).sum()), rel=0.05)


def test_mean_of_images_has_the_classical_interval():
    values = np.random.default_rng(0).normal(0.7, 0.1, (1, 60, 1))
    groups = np.array([f"g{i}" for i in range(60)])
    found = estimate(mean_sums(values, groups), draws=20_000)
    reach = stats.t.isf(0.025, 59) * values.std(ddof=1) / np.sqrt(60)
    assert found.value == pytest.approx(values.mean())
    assert found.interval(0.05)[1] - found.value == pytest.approx(reach, rel=0.02)
    away = Resampled(0.03, found.draws - found.value + 0.03, 60)
    error = away.error
    assert away.p_value == pytest.approx(2 * stats.t.sf(0.03 / error, 59), rel=1e-6)


def test_trainings_add_their_variance_in_pairs_or_apart():
    first = np.array([0.60, 0.64, 0.62, 0.66])
    second = np.array([0.50, 0.55, 0.51, 0.56])
    groups = np.array([f"g{i}" for i in range(50)])

    def constant(means):  # images that are all alike: no variance between groups
        return mean_sums(np.broadcast_to(means[:, None, None], (len(means), 50, 1)), groups)

    paired = difference(constant(first), constant(second))
    assert paired.error == pytest.approx(np.std(first - second, ddof=1) / 2)
    expected = stats.ttest_rel(first, second)
    assert paired.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert paired.interval() == pytest.approx(tuple(expected.confidence_interval()))
    apart = difference(constant(first), constant(second[:3]))
    variance = first.var(ddof=1) / 4 + second[:3].var(ddof=1) / 3
    assert apart.error == pytest.approx(np.sqrt(variance))
    alone = difference(constant(first[:1]), constant(second[:1]))
    assert (alone.error, alone.trainings) == (0, ())


def test_equal_candidates_and_a_difference_in_every_group():
    groups, labels, predictions = sample(trainings=1)
    sums = recall_sums(labels, predictions, groups, 3)
    assert difference(sums, sums).p_value == 1
    ones = mean_sums(np.ones((1, 6, 1)), np.array(list("aabbcc")))
    zeros = mean_sums(np.zeros((1, 6, 1)), np.array(list("aabbcc")))
    assert difference(ones, zeros).p_value == 0.25  # a sign test of three groups


def standardised(labels, groups, one, other):
    """A difference over its standard error, group by group and class by class."""
    value, influence = 0.0, dict.fromkeys(groups, 0.0)
    classes = np.unique(labels)
    for c in classes:
        apart = np.mean([(a[labels == c] == c) * 1.0 - (b[labels == c] == c) * 1.0
                         for a, b in zip(one, other, strict=True)], axis=0)  # fmt: skip
        value += apart.mean() / len(classes)
        for group, d in zip(groups[labels == c], apart, strict=True):
            influence[group] += (d - apart.mean()) / len(apart) / len(classes)
    return abs(value) / np.sqrt(sum(part**2 for part in influence.values()))


def test_signs_are_those_of_every_pattern(monkeypatch):
    """The share of patterns by brute force, in which each group's answers may be swapped."""
    groups, labels, predictions = sample(7, groups=9, trainings=2, classes=2)
    other = np.roll(predictions, 3, axis=1)
    first, second = (recall_sums(labels, p, groups, 2) for p in (predictions, other))
    found = difference(first, second)
    seen = standardised(labels, groups, predictions, other)
    names = np.unique(groups)
    reached = []
    for swapped in product([False, True], repeat=len(names)):
        rows = np.isin(groups, names[list(swapped)])
        one, two = np.where(rows, other, predictions), np.where(rows, predictions, other)
        reached.append(standardised(labels, groups, one, two))
    share = np.mean(np.array(reached) >= seen * (1 - 1e-9))
    assert 0 < share < 1
    signs = Resampled(found.value, found.value + np.zeros(3), 9, (), found.flipped)
    assert signs.p_value == pytest.approx(share)
    monkeypatch.setattr("echostill.eval.statistics.bootstrap.ALL_SIGNS", 2)
    drawn = difference(first, second)
    assert len(drawn.flipped) == 10_001
    signs = Resampled(found.value, found.value + np.zeros(3), 9, (), drawn.flipped)
    assert signs.p_value == pytest.approx(share, abs=0.02)


def test_candidates_that_lean_to_different_classes_can_be_told_apart():
    """A constant answer is always right on one class; its group's parts differ in sign by class."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], 60)
    groups = np.array([f"g{k:03d}" for k in range(120)])
    model = np.where(random.random(120) < 0.72, labels, 1 - labels)[None]
    constant = np.zeros((1, 120), dtype=int)
    found = difference(*(recall_sums(labels, p, groups, 2) for p in (model, constant)))
    by_interval = 2 * stats.norm.sf(found.value / found.error)
    assert by_interval < 0.01
    assert found.p_value == pytest.approx(by_interval, rel=1)


def test_an_interval_reaches_zero_where_signs_do_not_tell():
    names = np.array([f"g{k}" for k in range(5)])
    found = difference(*(mean_sums(np.full((1, 5, 1), v), names) for v in (0.75, 0.5)))
    assert found.p_value == pytest.approx(2 / 32)
    assert found.interval(0.05) == (0.0, 0.5)
    assert found.interval(0.1) == (0.25, 0.25)


def test_one_group_has_an_interval_without_ends():
    ones = mean_sums(np.ones((1, 4, 1)), np.array(list("aaaa")))
    zeros = mean_sums(np.zeros((1, 4, 1)), np.array(list("aaaa")))
    assert estimate(ones).interval() == (-np.inf, np.inf)
    assert difference(ones, zeros).interval() == (-np.inf, np.inf)
    assert difference(ones, zeros).p_value == 1


def test_mean_over_tasks_keeps_the_trainings_together():
    one = Resampled(0.1, np.array([0.0, 0.2]), 9, ((0.05, 0.15),))
    other = Resampled(0.3, np.array([0.4, 0.2]), 5, ((0.35, 0.25),))
    mean = mean_of([one, other])
    assert mean.value == pytest.approx(0.2)
    assert mean.draws == pytest.approx([0.2, 0.2])
    assert mean.trainings[0] == pytest.approx((0.2, 0.2))
    assert mean.groups == 5
    with pytest.raises(UsageError, match="equally many"):
        mean_of([one, Resampled(0.1, np.zeros(2), 9)])


def test_other_images_are_refused():
    groups, labels, predictions = sample()
    with pytest.raises(UsageError, match="same images"):
        difference(
            recall_sums(labels, predictions, groups, 3),
            recall_sums(labels[1:], predictions[:, 1:], groups[1:], 3),
        )


def test_sums_of_many_groups_need_no_table_of_groups_by_images():
    """Of a set of 100,000 patients such a table has 80 GB."""
    number = 100_000
    groups = np.array([f"{row:06d}" for row in range(number)])
    values = np.random.default_rng(0).random((2, number, 1))
    found = mean_sums(values, groups[::-1])
    np.testing.assert_array_equal(found.sums, values[:, ::-1])
    np.testing.assert_array_equal(found.counts, np.ones((number, 1)))
