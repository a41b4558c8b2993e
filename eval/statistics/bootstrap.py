"""Intervals of a metric, and of the difference of two candidates on the same images.

Two things vary: which groups (patients) a set happens to have, and which seed a model was trained
with. Images of one group are alike and both candidates see the same images, so groups are drawn
with replacement, the same ones for both (paired cluster bootstrap: Efron and Tibshirani, "An
introduction to the bootstrap", 1993, chapter 8; Field and Welsh, "Bootstrapping clustered data",
2007). All trainings are tested on the same groups: a draw of groups therefore holds for all of
them, and the variance between trainings is added to that between groups. Drawing groups anew for
each training would make the groups' part smaller the more trainings there are, as if each had been
tested on patients of its own.

A metric is a mean over classes of a mean over rows: balanced accuracy is the mean recall over the
classes, Dice the mean over foreground classes of the mean over images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from echostill.platform.errors import UsageError
from echostill.platform.seeding import stream

DRAWS = 2000
SMALLEST = 1e-9  # p-values below it are not told apart
ROUNDING = 1e-24  # a variance below it is the rounding of equal values


@dataclass(frozen=True)
class GroupSums:
    """A metric's sums by group: what a draw of groups adds up.

    Attributes:
        sums: (R, G, C) float64: for each of R trainings, G groups and C classes, the sum of the
            rows' values.
        counts: (G, C) float64: the rows of each group and class.
        names: (G,) names of the groups, ascending.
    """

    sums: np.ndarray
    counts: np.ndarray
    names: np.ndarray

    def values(self, weights: np.ndarray) -> np.ndarray:
        """Return the metric of each training under each draw, (R, B), of weights (B, G).

        A class that a draw has no row of is left out of its mean.
        """
        totals = weights @ self.counts  # (B, C)
        there = totals > 0
        means = np.matmul(weights, self.sums) / np.where(there, totals, 1.0)  # (R, B, C)
        found: np.ndarray = (means * there).sum(2) / np.maximum(there.sum(1), 1)
        return found

    def observed(self) -> np.ndarray:
        """Return the metric of each training, (R,)."""
        observed: np.ndarray = self.values(np.ones((1, len(self.names))))[:, 0]
        return observed

    def smallest(self) -> int:
        """Groups of the class that has the fewest: how much the set can say."""
        return int((self.counts > 0).sum(0).min())


def recall_sums(
    labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray, classes: int
) -> GroupSums:
    """Sums for balanced accuracy.

    Args:
        labels: (N,) int64 in 0..classes - 1.
        predictions: (R, N) int64, predicted classes of each training.
        groups: (N,) names.
        classes: Number of classes; one without rows is left out of the mean.
    """
    own = labels[:, None] == np.arange(classes)
    own = own[:, own.any(0)]
    hits = (predictions == labels)[..., None] & own
    return _sums(hits.astype(np.float64), own.astype(np.float64), groups)


def mean_sums(values: np.ndarray, groups: np.ndarray) -> GroupSums:
    """Sums for the mean over images, then over classes, of values (R, N, C), such as Dice."""
    return _sums(values.astype(np.float64), np.ones(values.shape[1:]), groups)


def _sums(values: np.ndarray, counts: np.ndarray, groups: np.ndarray) -> GroupSums:
    names, group_of = np.unique(groups, return_inverse=True)
    member = np.zeros((len(names), len(groups)))
    member[group_of, np.arange(len(groups))] = 1.0
    return GroupSums(np.matmul(member, values), member @ counts, names)


@lru_cache(maxsize=4)
def group_weights(groups: int, draws: int, seed: int, *names: str) -> np.ndarray:
    """Draw groups with replacement: how often each was drawn, (draws, groups) float64."""
    random = stream(seed, "bootstrap over groups", groups, *names)
    drawn = random.multinomial(groups, np.full(groups, 1 / groups), size=draws).astype(np.float64)
    drawn.flags.writeable = False  # all candidates of a set share them
    return drawn


@dataclass(frozen=True)
class Resampled:
    """A metric, or a difference, with what its interval is made from.

    Attributes:
        value: On the set as it is.
        draws: (B,) values under the draws of groups, mean over the trainings.
        groups: Groups that stand behind it (of the class that has the fewest).
        trainings: Value of each training; where two candidates were not trained in pairs, the
            values of either. An empty tuple where there is one training, whose spread is unknown.
    """

    value: float
    draws: np.ndarray
    groups: int
    trainings: tuple[tuple[float, ...], ...] = ()

    @property
    def error(self) -> float:
        """Standard error: of the groups, and of the trainings where there are several."""
        return math.sqrt(self._variance())

    def _variance(self) -> float:
        total = sum(variance for variance, _ in self._parts())
        return total if total > ROUNDING else 0.0

    def _parts(self) -> list[tuple[float, int]]:
        """Variances and their degrees of freedom."""
        # A draw with replacement has (n - 1) / n of the variance; it matters for small classes.
        count = max(self.groups, 2)
        parts = [(float(np.var(self.draws)) * count / (count - 1), count - 1)]
        for values in self.trainings:
            parts.append((float(np.var(values, ddof=1)) / len(values), len(values) - 1))
        return parts

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """Return the interval that misses the true value with probability ``level``."""
        reach = self._reach(level)
        return self.value - reach, self.value + reach

    def _reach(self, level: float) -> float:
        """Half the interval's length.

        Quantiles of t with the degrees of freedom of each variance, weighted by the variances
        (Cochran and Cox, "Experimental designs", 1950). Satterthwaite's degrees of freedom would
        claim too much where few trainings happen to agree.
        """
        total = self._variance()
        if total == 0:
            return 0.0
        parts = self._parts()
        quantile = sum(v * float(special.stdtrit(f, 1 - level / 2)) for v, f in parts) / total
        return quantile * math.sqrt(total)

    @property
    def p_value(self) -> float:
        """Two-sided: the level at which the interval just reaches 0.

        It is never below that of a sign test in which every group says the same.
        """
        away, least = abs(self.value), max(SMALLEST, 2.0 ** (1 - self.groups))
        if away == 0 or self._reach(1.0) >= away:
            return 1.0
        if self._reach(least) <= away:
            return min(least, 1.0)
        lowest = math.log(least)
        found = optimize.brentq(lambda log: self._reach(math.exp(log)) - away, lowest, 0.0)
        return math.exp(float(found))


def estimate(sums: GroupSums, *, draws: int = DRAWS, seed: int = 0, of: str = "") -> Resampled:
    """Return a candidate's metric with its interval.

    Args:
        sums: The candidate's.
        draws: Draws of groups.
        seed: Seed of the draws.
        of: Name of the set: sets of different names are drawn independently.
    """
    own = sums.observed()
    weights = group_weights(len(sums.names), draws, seed, of)
    several = (tuple(own.tolist()),) if len(own) > 1 else ()
    drawn = sums.values(weights).mean(0)
    return Resampled(float(own.mean()), drawn, sums.smallest(), several)


def difference(
    first: GroupSums, second: GroupSums, *, draws: int = DRAWS, seed: int = 0, of: str = ""
) -> Resampled:
    """Return by how much the first candidate's metric is higher than the second's.

    Candidates with equally many trainings are paired training by training, since students of one
    seed share their initial weights and the order of images.

    Args:
        first: Sums of the first candidate.
        second: Sums of the second, on the same groups.
        draws: Draws of groups.
        seed: Seed of the draws.
        of: Name of the set: sets of different names are drawn independently.

    Raises:
        UsageError: The groups, or their rows, are not the same.
    """
    if not (
        np.array_equal(first.names, second.names) and np.array_equal(first.counts, second.counts)
    ):
        raise UsageError("candidates can only be compared on the same images of the same groups.")
    weights = group_weights(len(first.names), draws, seed, of)
    own, other = first.observed(), second.observed()
    drawn = first.values(weights).mean(0) - second.values(weights).mean(0)
    each = [own - other] if len(own) == len(other) else [own, other]
    several = tuple(tuple(values.tolist()) for values in each if len(values) > 1)
    return Resampled(float(own.mean() - other.mean()), drawn, first.smallest(), several)


def mean_of(estimates: Sequence[Resampled]) -> Resampled:
    """Return the mean of estimates on different sets, such as a difference over all tasks.

    The sets' groups are independent; the trainings are the same ones, in the same order.

    Raises:
        UsageError: They do not have equally many draws and trainings.
    """
    shapes = {(len(e.draws), tuple(len(values) for values in e.trainings)) for e in estimates}
    if len(shapes) != 1:
        raise UsageError("a mean needs estimates with equally many draws and trainings.")
    pieces = zip(*(e.trainings for e in estimates), strict=True)
    return Resampled(
        float(np.mean([e.value for e in estimates])),
        np.mean([e.draws for e in estimates], axis=0),
        min(e.groups for e in estimates),
        tuple(tuple(np.mean(values, axis=0).tolist()) for values in pieces),
    )
