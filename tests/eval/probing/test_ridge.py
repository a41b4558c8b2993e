import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from echostill.eval.metrics import balanced_accuracy
from echostill.eval.probing.ridge import (
    PENALTIES,
    USUAL,
    class_weights,
    classify,
    fit_classes,
    fit_ridge,
)
from echostill.eval.splits import Folds


def sample(rows=60, features=7, classes=3, seed=0):
    random = np.random.default_rng(seed)
    labels = np.sort(random.integers(0, classes, rows))
    x = random.normal(size=(rows, features)) * 3 + 5
    x[:, :classes] += 3 * np.eye(classes)[labels]
    return x, labels


@pytest.mark.parametrize("features", [7, 90])  # more images than features, and fewer
def test_solutions_are_those_of_scikit_learn(features):
    x, _ = sample(features=features)
    random = np.random.default_rng(1)
    targets, weights = random.normal(size=(60, 2)), random.random(60) + 0.5
    weights /= weights.mean()
    found = fit_ridge(x, targets, weights, (0.01, 3.0))
    new = random.normal(size=(5, features))
    for place, penalty in enumerate((0.01, 3.0)):
        scaler = StandardScaler().fit(x)
        model = SklearnRidge(alpha=penalty * 60).fit(scaler.transform(x), targets, weights)
        expected = model.predict(scaler.transform(new))
        np.testing.assert_allclose(found.scores(new)[place], expected, rtol=1e-8, atol=1e-9)


def test_classes_weigh_the_same_and_constant_features_do_no_harm():
    weights = class_weights(np.array([0, 0, 0, 2]))
    assert weights.mean() == pytest.approx(1)
    assert weights[:3].sum() == pytest.approx(weights[3])
    x, labels = sample()
    x[:, 3] = 1e6
    assert np.isfinite(fit_classes(x, labels, 3, PENALTIES).scores(x)).all()


def plain(x, labels, fold, tested):
    """The same by a loop over tested folds, inner folds and penalties, without sharing."""
    scores = np.full((len(labels), 3), np.nan)
    for number in tested:
        reached = []
        for penalty in PENALTIES:
            own, predicted = [], []
            for inner in sorted(set(fold) - {number}):
                train = (fold != number) & (fold != inner)
                model = fit_classes(x[train], labels[train], 3, (penalty,))
                predicted += model.scores(x[fold == inner])[0].argmax(1).tolist()
                own += labels[fold == inner].tolist()
            reached.append(round(balanced_accuracy(np.array(own), np.array(predicted)), 12))
        best = max(p for p, value in zip(PENALTIES, reached, strict=True) if value == max(reached))
        model = fit_classes(x[fold != number], labels[fold != number], 3, (best,))
        scores[fold == number] = model.scores(x[fold == number])[0]
    return scores


def test_every_fold_is_predicted_by_others_and_so_is_its_penalty():
    x, labels = sample()
    fold = np.random.default_rng(2).permutation(np.arange(60) % 4)
    scores, penalties = classify(x, labels, 3, Folds(fold, (0, 1, 2, 3)))
    np.testing.assert_allclose(scores, plain(x, labels, fold, (0, 1, 2, 3)), rtol=1e-9)
    assert set(penalties) <= set(PENALTIES)
    # An official split: only fold 3 is tested, and nothing of it is seen.
    changed = x.copy()
    changed[np.flatnonzero(fold == 3)[1:]] = 1e3
    first = np.flatnonzero(fold == 3)[0]
    official = classify(x, labels, 3, Folds(fold, (3,)))[0]
    np.testing.assert_array_equal(
        official[first], classify(changed, labels, 3, Folds(fold, (3,)))[0][first]
    )
    assert np.isnan(official[fold != 3]).all()


def test_two_folds_leave_nothing_to_choose_on():
    x, labels = sample()
    _, penalties = classify(x, labels, 3, Folds(np.arange(60) % 2, (0, 1)))
    assert penalties.tolist() == [USUAL, USUAL]
