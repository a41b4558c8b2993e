"""Ridge regression in closed form, for many penalties at once, one chosen on the training side.

A linear classifier of frozen features by least squares to the classes: one eigendecomposition gives
the solutions of all penalties, so that choosing one costs no more than fitting. Numpy in float64;
the result depends on nothing but the data.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from echostill.eval.metrics import balanced_accuracy
from echostill.eval.splits import Folds

PENALTIES = tuple(float(10**power) for power in np.arange(-3.0, 3.1, 0.5))
USUAL = 1.0  # where there is nothing to choose on


class Ridge(NamedTuple):
    """Solutions on standardised features, one per penalty."""

    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    weight: np.ndarray  # (P, D, O)
    bias: np.ndarray  # (P, O)

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return (P, N, O) of features (N, D)."""
        standardised = (features.astype(np.float64) - self.mean) / self.scale
        scores: np.ndarray = np.matmul(standardised, self.weight) + self.bias[:, None]
        return scores


def fit_ridge(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, penalties: Iterable[float]
) -> Ridge:
    """Minimise  sum_i w_i |t_i - b - W x_i|^2 + p n |W|^2  on standardised x for each penalty p.

    Args:
        features: (n, D).
        targets: (n, O).
        weights: (n,) with mean 1.
        penalties: The values of p.
    """
    x, t = features.astype(np.float64), targets.astype(np.float64)
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-8 * np.maximum(np.abs(mean), 1), scale, 1.0)
    x = (x - mean) / scale
    share = weights[:, None] / weights.sum()
    centre, level = (share * x).sum(0), (share * t).sum(0)
    root = np.sqrt(weights)[:, None]
    a, y = root * (x - centre), root * (t - level)
    count = len(x)
    strengths = np.array([penalty * count for penalty in penalties])
    if a.shape[1] <= count:
        values, vectors = np.linalg.eigh(a.T @ a)
        left, right = vectors, vectors.T @ (a.T @ y)
    else:  # the same solution by the images' products, where there are fewer images than features
        values, vectors = np.linalg.eigh(a @ a.T)
        left, right = a.T @ vectors, vectors.T @ y
    shrunk = right / (np.maximum(values, 0)[None, :, None] + strengths[:, None, None])
    weight = np.matmul(left, shrunk)
    return Ridge(mean, scale, weight, level - np.matmul(centre, weight))


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Weights (n,) that give every class present the same total; their mean is 1."""
    values, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: np.ndarray = len(labels) / (len(values) * counts[position].astype(np.float64))
    return weights


def fit_classes(
    features: np.ndarray, labels: np.ndarray, classes: int, penalties: Iterable[float]
) -> Ridge:
    """Fit to the classes, one-hot, each with the same total weight."""
    return fit_ridge(features, np.eye(classes)[labels], class_weights(labels), penalties)


def classify(
    features: np.ndarray, labels: np.ndarray, classes: int, folds: Folds
) -> tuple[np.ndarray, np.ndarray]:
    """Predict each tested row by a classifier that was trained without its fold.

    For each tested fold the penalty is chosen by the balanced accuracy of predictions of the other
    folds, each made without it and without the tested one; of equal ones the largest.

    Args:
        features: (N, D).
        labels: (N,) int64.
        classes: Number of classes.
        folds: The folds.

    Returns:
        Scores (N, classes) float64, NaN in rows that are not tested, and the penalty of each tested
        fold.
    """
    fitted: dict[tuple[int, ...], Ridge] = {}

    def without(*numbers: int) -> Ridge:
        key = tuple(sorted(set(numbers)))
        if key not in fitted:  # two tested folds share the classifier that knows neither
            rows = folds.outside(*key)
            fitted[key] = fit_classes(features[rows], labels[rows], classes, PENALTIES)
        return fitted[key]

    scores = np.full((len(labels), classes), np.nan)
    chosen = []
    for tested in folds.tested:

        def predict(fold: int, tested: int = tested) -> np.ndarray:
            return without(tested, fold).scores(features[folds.rows(fold)])

        place = choose_penalty(predict, labels, folds, tested)
        rows = folds.rows(tested)
        scores[rows] = without(tested).scores(features[rows])[place]
        chosen.append(PENALTIES[place])
    return scores, np.array(chosen)


def choose_penalty(
    predict: Callable[[int], np.ndarray], labels: np.ndarray, folds: Folds, tested: int
) -> int:
    """Return the place in ``PENALTIES`` with the best balanced accuracy on the inner folds.

    Args:
        predict: Scores (P, n, classes) of an inner fold's rows, made without it and ``tested``.
        labels: (N,) of all rows.
        folds: The folds.
        tested: The fold that must not be looked at.
    """
    present = set(labels[folds.outside(tested)].tolist())
    usable = [
        fold
        for fold in folds.inner(tested)
        if set(labels[folds.outside(tested, fold)].tolist()) == present
    ]
    if not usable:
        return PENALTIES.index(USUAL)
    predicted = np.concatenate([predict(fold).argmax(2) for fold in usable], axis=1)
    own = labels[np.concatenate([folds.rows(fold) for fold in usable])]
    reached = [round(balanced_accuracy(own, row), 12) for row in predicted]
    return max(range(len(reached)), key=lambda place: (reached[place], place))
