"""Few labels: a linear classifier trained on some groups of each class, tested on all others."""

from typing import NamedTuple

import numpy as np

from echostill.eval.probing.ridge import PENALTIES, USUAL, choose_penalty, fit_classes
from echostill.eval.splits import Folds
from echostill.eval.statistics.folds import group_folds
from echostill.platform.errors import UsageError
from echostill.platform.seeding import stream

INNER_FOLDS = 3
LEFT = 5  # groups of each class that must be left to test on


class FewGroups(NamedTuple):
    """One draw of groups to train on."""

    shots: int  # groups of each class
    number: int
    train: np.ndarray  # rows, ascending
    test: np.ndarray  # rows of all groups that were not drawn


def draw_groups(
    groups: np.ndarray, labels: np.ndarray, shots: tuple[int, ...], draws: int, seed: int
) -> tuple[list[FewGroups], list[int]]:
    """FewGroups groups of each class, the same ones for every candidate.

    A class gives ``shots`` of the groups that have it, and of these groups the images with its
    label are trained on. Draws depend only on the seed, the names of the groups and the labels.

    Returns:
        The draws, and the numbers of groups for which the set is too small: where a class would
        have fewer than ``LEFT`` groups left.
    """
    having = [np.unique(groups[labels == value]) for value in np.unique(labels)]
    smallest = min(len(names) for names in having)
    made, too_many = [], []
    for count in shots:
        if smallest - count < LEFT:
            too_many.append(count)
            continue
        for number in range(draws):
            train = np.zeros(len(labels), dtype=bool)
            taken: set[str] = set()
            for value, names in zip(np.unique(labels), having, strict=True):
                random = stream(seed, "few shots", count, number, int(value))
                drawn = names[random.permutation(len(names))[:count]]
                train |= np.isin(groups, drawn) & (labels == value)
                taken |= set(drawn.tolist())
            test = ~np.isin(groups, sorted(taken))
            if set(labels[test].tolist()) == set(labels.tolist()):
                made.append(FewGroups(count, number, np.flatnonzero(train), np.flatnonzero(test)))
    return made, too_many


def predict_draw(
    features: np.ndarray, groups: np.ndarray, labels: np.ndarray, classes: int, draw: FewGroups
) -> np.ndarray:
    """Return the predicted classes (M,) of a draw's test rows.

    The penalty is chosen by folds of the groups that were drawn.
    """
    own, x, y = groups[draw.train], features[draw.train], labels[draw.train]
    place = PENALTIES.index(USUAL)
    fold: np.ndarray | None
    try:
        fold = group_folds(own, y, INNER_FOLDS, seed=draw.number)
    except UsageError:  # groups with several classes can leave nothing to choose on
        fold = None
    if fold is not None:
        folds = Folds(fold, ())

        def without(number: int) -> np.ndarray:
            rows = folds.outside(number)
            fitted = fit_classes(x[rows], y[rows], classes, PENALTIES)
            return fitted.scores(x[folds.rows(number)])

        place = choose_penalty(without, y, folds, tested=-1)
    scores = fit_classes(x, y, classes, (PENALTIES[place],)).scores(features[draw.test])
    predicted: np.ndarray = scores[0].argmax(1)
    return predicted
