"""Means over draws of a few groups to train on, with intervals over groups and over draws.

A few-shot classifier is trained on some groups and tested on all others, many times. The metric is
the mean over the draws of each draw's metric. Two things vary in it. The groups that are tested
have the variance that they have in a cross-validation. The groups that are trained on have another:
its part between the draws is seen, but draws of a small set share many of their groups, so that the
mean over more draws does not come closer to that of other patients.

Draws of m of n groups share m / n of their variance, for a metric to which a draw's groups add up
(Hoeffding, "A class of statistics with asymptotically normal distribution", 1948). What is seen
between draws is the rest, so it is enlarged by m / (n - m). What differs between draws only
since they are tested on different groups is taken out before: the groups' variance has it already.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from echostill.eval.statistics.bootstrap import (
    GroupSums,
    Resampled,
    difference,
    estimate,
)


@dataclass(frozen=True)
class DrawnSums:
    """A metric's sums of each draw.

    Attributes:
        sums: (D, R, G, C): for each of D draws and R trainings, by group and class.
        counts: (D, G, C): the tested rows.
        names: (G,) names of all groups, ascending.
    """

    sums: np.ndarray
    counts: np.ndarray
    names: np.ndarray

    def mean(self) -> GroupSums:
        """The sums of the mean over draws: sums and counts are shares of a draw's rows."""
        rows = self.counts.sum(1)[:, None]
        return GroupSums(
            (self.sums / rows[:, None]).mean(0), (self.counts / rows).mean(0), self.names
        )


def drawn_recalls(
    draws: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int
) -> DrawnSums:
    """Sums for the mean over draws of the balanced accuracy.

    Args:
        draws: Labels (N,), predictions (R, N) and groups (N,) of each draw's tested rows; a class
            has rows in all draws or in none.
        classes: Number of classes.
    """
    names = np.unique(np.concatenate([groups for _, _, groups in draws]))
    trainings = len(draws[0][1])
    sums = np.zeros((len(draws), trainings, len(names), classes))
    counts = np.zeros((len(draws), len(names), classes))
    for number, (labels, predictions, groups) in enumerate(draws):
        place = np.searchsorted(names, groups)
        np.add.at(counts[number], (place, labels), 1)
        for training, hits in enumerate(predictions == labels):
            np.add.at(sums[number, training], (place, labels), hits)
    used = counts.any((0, 1))
    return DrawnSums(sums[..., used], counts[..., used], names)


def drawn_estimate(own: DrawnSums, *, seed: int = 0, of: str = "") -> Resampled:
    """Return a candidate's metric, as ``estimate`` does."""
    found = estimate(own.mean(), seed=seed, of=of)
    return _with_draws(found, own.sums.mean(1), own.counts)


def drawn_difference(
    first: DrawnSums, second: DrawnSums, *, seed: int = 0, of: str = ""
) -> Resampled:
    """Return by how much the first candidate's metric is higher, as ``difference`` does.

    Args:
        first: Sums of the first candidate.
        second: Sums of the second, over the same draws.
        seed: Seed of the draws of groups to test on.
        of: Name of the set.

    Raises:
        UsageError: The groups, or their rows, are not the same.
    """
    found = difference(first.mean(), second.mean(), seed=seed, of=of)
    return _with_draws(found, first.sums.mean(1) - second.sums.mean(1), first.counts)


def _with_draws(found: Resampled, sums: np.ndarray, counts: np.ndarray) -> Resampled:
    """Add the variance of the draws; that of a single one is not known."""
    if len(sums) < 2:
        return found
    values = (sums / counts.sum(1)[:, None]).sum(1).mean(1)
    wanted = draw_variance(sums, counts)
    # ``Resampled`` takes values, of which it computes the variance of their mean.
    known = float(np.var(values, ddof=1)) / len(values)
    stretched = values * np.sqrt(wanted / known) if known > 0 else values
    return replace(found, trainings=(*found.trainings, tuple(stretched.tolist())))


def draw_variance(sums: np.ndarray, counts: np.ndarray) -> float:
    """Return the variance that the choice of the groups to train on gives a mean over draws.

    Args:
        sums: (D, G, C) of a metric, or of a difference.
        counts: (D, G, C) tested rows.
    """
    draws, classes = len(sums), sums.shape[2]
    rows = counts.sum(1)[:, None]
    between = float(np.var((sums / rows).sum(1).mean(1), ddof=1))
    tested = counts > 0
    shared = float(1 - (tested.sum(1).mean(0) / tested.any(0).sum(0)).min())  # m / n
    times = draws * (1 - shared)  # that a group is tested
    by_training = between
    if times > 1:
        # Each group's own mean over the draws is taken out, and what is left between draws is
        # corrected by what is left between the groups of a draw.
        usual = sums.sum(0) / np.maximum(counts.sum(0), 1)
        left = (sums - counts * usual) / (rows * classes)
        of_class = left.sum(1)[:, None]
        own = left.sum(2) - (counts / rows * of_class).sum(2)
        noise = float((own**2).sum(1).mean())
        by_training = (float(np.var(left.sum((1, 2)), ddof=1)) - noise) / (1 - 1 / times)
    return between / draws + max(by_training, 0.0) * shared / (1 - shared)
