import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from echostill.eval.statistics.bootstrap import difference, recall_sums
from echostill.eval.statistics.draws import (
    DrawnSums,
    draw_variance,
    drawn_difference,
    drawn_estimate,
    drawn_recalls,
)
from echostill.eval.statistics.family import LEVEL, conclude

DRAWS = 20


def drawn_groups(random, classes, groups, shots):
    """(D, classes x groups) bool: which are trained on; as many of each class."""
    order = random.random((DRAWS, classes, groups)).argsort(axis=2)
    return (order < shots).reshape(DRAWS, -1)


def means_of(values, trained, classes):
    """Sums of a value per tested group and draw (D, G)."""
    groups = trained.shape[1]
    member = np.eye(classes)[np.repeat(np.arange(classes), groups // classes)]
    counts = np.where(trained[..., None], 0.0, member)
    names = np.array([f"g{k:03d}" for k in range(groups)])
    return DrawnSums((values[..., None] * counts)[:, None], counts, names)


def candidate(random, trained, shots, shared, gain=0.0):
    """What a group is worth to test on, and what those that were trained on are worth together."""
    tested = shared + gain + random.normal(size=trained.shape[1])
    taught = trained @ random.normal(size=trained.shape[1]) * 2 / shots
    noise = 0.5 * random.normal(size=trained.shape)
    return tested + taught[:, None] + noise


def test_the_value_is_the_mean_over_draws_of_the_balanced_accuracy():
    random = np.random.default_rng(0)
    labels, groups = np.arange(60) % 3, np.array([f"g{k // 2:02d}" for k in range(60)])
    parts, wanted = [], []
    for _ in range(4):
        rows = np.flatnonzero(np.isin(groups, random.choice(np.unique(groups), 20, replace=False)))
        said = random.integers(0, 3, (2, len(rows)))
        parts.append((labels[rows], said, groups[rows]))
        wanted += [balanced_accuracy_score(labels[rows], own) for own in said]
    found = drawn_estimate(drawn_recalls(parts, 3))
    assert found.value == pytest.approx(np.mean(wanted))
    assert len(found.trainings) == 2  # two trainings, and the draws
    constant = [(own, np.zeros_like(said[:1]), names) for own, said, names in parts]
    assert drawn_estimate(drawn_recalls(constant, 3)).value == pytest.approx(1 / 3)


def test_one_draw_is_like_one_split():
    random = np.random.default_rng(0)
    labels, groups = np.arange(40) % 2, np.array([f"g{k // 2:02d}" for k in range(40)])
    both = [random.integers(0, 2, (1, 40)) for _ in range(2)]
    found = drawn_difference(*(drawn_recalls([(labels, own, groups)], 2) for own in both))
    plain = difference(*(recall_sums(labels, own, groups, 2) for own in both))
    assert found.value == pytest.approx(plain.value)
    assert found.interval() == pytest.approx(plain.interval())


@pytest.mark.parametrize("shots", [5, 15, 25])
def test_the_variance_of_draws_is_that_of_other_groups_to_train_on(shots):
    """Of sets of 30 groups, most of which most draws share: the draws of one set are too alike."""
    random = np.random.default_rng(1)
    claimed, found, seen = [], [], []
    for _ in range(150):
        trained = drawn_groups(random, 1, 30, shots)
        values = candidate(random, trained, shots, shared=0.0)
        own = means_of(values, trained, 1)
        claimed.append(draw_variance(own.sums.mean(1), own.counts))
        taught = values - values.mean(0)  # what differs by draw
        seen.append(np.var(taught.mean(1), ddof=1) / DRAWS)
        found.append((trained @ random.normal(size=30) * 2 / shots).mean())
    assert np.mean(claimed) > 0.9 * np.var(found)
    assert np.mean(claimed) > 1.5 * np.mean(seen)


def words(random, classes, groups, shots, others, gain=0.0):
    trained = drawn_groups(random, classes, groups, shots)
    shared = random.normal(size=classes * groups)
    first, *rest = (
        means_of(candidate(random, trained, shots, shared, own), trained, classes)
        for own in (gain, *[0.0] * others)
    )
    return [said.word for said in conclude([drawn_difference(first, each) for each in rest])]


@pytest.mark.parametrize(
    ("classes", "groups", "shots", "others"),
    [(2, 30, 5, 1), (2, 30, 25, 1), (3, 12, 5, 3)],
)
def test_equal_candidates_get_no_word(monkeypatch, classes, groups, shots, others):
    monkeypatch.setattr("echostill.eval.statistics.bootstrap.FLIPS", 500)
    random = np.random.default_rng(3)
    families = 100
    said = [words(random, classes, groups, shots, others) for _ in range(families)]
    wrong = sum(any(word != "not distinguished" for word in own) for own in said)
    assert wrong <= stats.binom.ppf(0.99, families, LEVEL)


def test_a_true_difference_is_found(monkeypatch):
    monkeypatch.setattr("echostill.eval.statistics.bootstrap.FLIPS", 500)
    random = np.random.default_rng(4)
    said = [words(random, 2, 60, 5, 2, gain=3.0) for _ in range(10)]
    assert sum(own == ["ahead", "ahead"] for own in said) >= 9
