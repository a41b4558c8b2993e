from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from echostill.eval.statistics.bootstrap import (
    Resampled,
    difference,
    group_weights,
    mean_sums,
    recall_sums,
)
from echostill.eval.statistics.family import LEVEL, conclude, groups_needed, holm, step_levels

FAMILIES = 400
COMPARISONS = 4


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=6), level=st.floats(0.01, 0.3))
def test_holm_is_the_closed_test_of_bonferroni(p_values, level):
    """A hypothesis falls where Bonferroni rejects every set of hypotheses that it is in."""
    numbers = range(len(p_values))
    sets = [s for size in numbers for s in combinations(numbers, size + 1)]
    adjusted, levels = holm(p_values), step_levels(p_values, level)
    for number in numbers:
        closed = max(min(min(p_values[i] for i in s) * len(s), 1.0) for s in sets if number in s)
        assert adjusted[number] == pytest.approx(closed)
        if abs(adjusted[number] - level) > 1e-9:
            assert (p_values[number] <= levels[number]) == (adjusted[number] <= level)


def test_words_follow_the_corrected_interval():
    random = np.random.default_rng(0)
    spread = random.normal(0, 1, 4000)
    shifts = [0.0, 2.2, 6.0, -6.0]
    found = conclude([Resampled(shift, shift + spread, 200) for shift in shifts])
    assert [item.word for item in found] == [
        "not distinguished", "not distinguished", "ahead", "behind",
    ]  # fmt: skip
    assert found[1].low > 0 > found[1].corrected_low  # alone it would be different
    for item in found:
        assert item.corrected_low <= item.low <= item.value <= item.high <= item.corrected_high
        assert (item.word == "not distinguished") == (
            item.corrected_low <= 0 <= item.corrected_high
        )


def simulated(gain, seed=1):
    """Families of one candidate against others: how many of each family get a word.

    Images of a group are alike in difficulty, candidates differ by luck alone, or by ``gain``.
    """
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(60), 2)
    labels = np.repeat(random.permutation(np.repeat([0, 1, 2], [28, 20, 12])), 2)
    candidates = COMPARISONS + 1
    shape = (FAMILIES, candidates, 60)
    ability = np.repeat(random.normal(0.4, 1.2, 60) + random.normal(0, 0.8, shape), 2, axis=-1)
    ability[:, 0] += gain
    right = random.random(ability.shape) < 1 / (1 + np.exp(-ability))
    predictions = np.where(right, labels, (labels + 1) % 3).reshape(-1, len(labels))
    sums = recall_sums(labels, predictions, groups, 3)
    drawn = sums.values(group_weights(60, 250, seed)).reshape(FAMILIES, candidates, -1)
    observed = sums.observed().reshape(FAMILIES, candidates)
    counts = []
    for value, draws in zip(observed, drawn, strict=True):
        family = [
            Resampled(value[0] - value[k], draws[0] - draws[k], sums.smallest())
            for k in range(1, candidates)
        ]
        counts.append(sum(item.word != "not distinguished" for item in conclude(family)))
    return np.array(counts)


def test_equal_candidates_are_told_apart_in_at_most_a_twentieth_of_families():
    wrong = int((simulated(gain=0.0) > 0).sum())
    assert wrong <= stats.binom.ppf(0.999, FAMILIES, 0.05)


def test_a_true_difference_is_found():
    assert (simulated(gain=2.0) == COMPARISONS).mean() > 0.5


SIZES = {  # images of a group
    "one image each": lambda random, groups: np.ones(groups, dtype=int),
    "unequal": lambda random, groups: 1 + np.rint(np.exp(random.normal(0.3, 1.2, groups))),
    "a few large": lambda random, groups: (1 + random.pareto(1.0, groups)).clip(max=200),
}


def family(random, sizes, classes, trainings, others):
    """Words for one candidate against others that are trained and answer as it does.

    Args:
        random: Where the groups, their images and all answers come from.
        sizes: How many images groups have.
        classes: Groups of each class; of one class the metric is a mean over images, as Dice is.
        trainings: Of the first candidate and of each other one.
        others: Number of the other candidates.
    """
    label_of = random.permutation(np.repeat(np.arange(len(classes)), classes))
    count = SIZES[sizes](random, len(label_of)).astype(int)
    groups = np.repeat([f"g{k:02d}" for k in range(len(label_of))], count)
    labels = np.repeat(label_of, count)
    difficulty = random.normal(0.6, 1.2, len(label_of))
    found = []
    for number in (trainings[0], *[trainings[1]] * others):
        spread = 0.3 * random.normal(size=(number, 1)) if number > 1 else 0.0
        luck = random.normal(0, 0.8, (number, len(label_of)))
        chance = 1 / (1 + np.exp(-(difficulty + spread + luck).repeat(count, axis=1)))
        if len(classes) == 1:
            values = chance * random.random(chance.shape) ** 0.2
            found.append(mean_sums(values[..., None], groups))
        else:
            right = random.random(chance.shape) < chance
            predicted = np.where(right, labels, (labels + 1) % len(classes))
            found.append(recall_sums(labels, predicted, groups, len(classes)))
    return [said.word for said in
            conclude([difference(found[0], other, draws=250) for other in found[1:]])]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "classes", "trainings", "others", "families"),
    [
        ("a few large", (30,), (1, 1), 2, 300),
        ("unequal", (12,), (1, 1), 4, 150),
        ("one image each", (16,), (1, 1), 2, 200),
        ("a few large", (28, 20, 12), (1, 1), 10, 60),
        ("unequal", (24, 12), (2, 2), 4, 120),
        ("one image each", (30, 20), (1, 3), 4, 120),
    ],
)
def test_equal_candidates_get_no_word_whatever_the_groups(
    monkeypatch, sizes, classes, trainings, others, families
):
    monkeypatch.setattr("echostill.eval.statistics.bootstrap.FLIPS", 1000)
    random = np.random.default_rng(2)
    said = [family(random, sizes, classes, trainings, others) for _ in range(families)]
    wrong = sum(any(word != "not distinguished" for word in words) for words in said)
    assert wrong <= stats.binom.ppf(0.999, families, LEVEL)


@given(comparisons=st.integers(1, 60))
def test_fewer_groups_than_needed_never_get_a_word(comparisons):
    def words(groups):
        names = np.array([f"g{k:02d}" for k in range(groups)])
        always, never = (mean_sums(np.full((1, groups, 1), v), names) for v in (1.0, 0.0))
        same = difference(always, never, draws=20)
        alike = difference(always, always, draws=20)
        return [said.word for said in conclude([same] + [alike] * (comparisons - 1))]

    needed = groups_needed(comparisons)
    assert "ahead" not in words(needed - 1)
    assert words(needed)[0] == "ahead"
