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

The interval supposes that a mean over groups is nearly normal. With few groups, or where both
candidates say the same of nearly all of them, it is not, and too small p-values would come out. So
a difference has to pass a second test, which supposes nothing of the kind: if two candidates are
equal, each group could as well have been answered the other way round, so that its part of the
difference could have had the other sign (randomisation test: Fisher, "The design of experiments",
1935). What is compared between patterns of signs is the difference over its standard error, as in
Janssen, "Studentized permutation tests for non-i.i.d. hypotheses", 1997: the difference alone would
find nothing where candidates lean to different classes, which swapping turns round too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy import optimize, sparse, special

from echostill.platform.errors import UsageError
from echostill.platform.seeding import stream

DRAWS = 2000
FLIPS = 10_000  # drawn patterns of signs, where there are too many to try them all
ALL_SIGNS = 13  # groups up to which all patterns of signs are tried
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
    rows = np.arange(len(groups))
    shape = (len(names), len(groups))
    member = sparse.csr_array((np.ones(len(groups)), (group_of, rows)), shape=shape)
    return GroupSums(np.stack([member @ each for each in values]), member @ counts, names)


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
        flipped: (F, 2) differences and their variances where each group's part was given a sign,
            first as it was seen; None where the value is no difference.
    """

    value: float
    draws: np.ndarray
    groups: int
    trainings: tuple[tuple[float, ...], ...] = ()
    flipped: np.ndarray | None = None

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
        """Return the interval that misses the true value with probability ``level``.

        It reaches 0 where the test by signs does not tell the difference from 0 at that level, and
        has no ends where one group stands behind the value.
        """
        reach = self._reach(level)
        if self.flipped is not None and self._p_by_signs > level:
            reach = max(reach, abs(self.value))
        return self.value - reach, self.value + reach

    def _reach(self, level: float) -> float:
        """Half the interval's length.

        Quantiles of t with the degrees of freedom of each variance, weighted by the variances
        (Cochran and Cox, "Experimental designs", 1950). Satterthwaite's degrees of freedom would
        claim too much where few trainings happen to agree.
        """
        if self.groups < 2:
            return math.inf  # how much groups differ cannot be known
        total = self._variance()
        if total == 0:
            return 0.0
        parts = self._parts()
        quantile = sum(v * float(special.stdtrit(f, 1 - level / 2)) for v, f in parts) / total
        return quantile * math.sqrt(total)

    @property
    def p_value(self) -> float:
        """Two-sided: the level at which the interval just reaches 0."""
        return max(self._p_by_interval(), self._p_by_signs)

    @cached_property
    def _p_by_signs(self) -> float:
        """Share of the patterns of signs that give at least this difference."""
        if self.flipped is None:  # at best all groups say the same
            return min(2.0 ** (1 - self.groups), 1.0)
        values, variances = self.flipped.T
        with np.errstate(divide="ignore", invalid="ignore"):  # no variance: as far from 0 as can be
            squared = np.where(values**2 > ROUNDING, values**2 / variances, 0.0)
        least = squared[0] * (1 - 1e-6)  # equal patterns differ in their rounding
        return float(np.mean(squared >= least))

    def _p_by_interval(self) -> float:
        away = abs(self.value)
        if away == 0 or self._reach(1.0) >= away:
            return 1.0
        if self._reach(SMALLEST) <= away:
            return SMALLEST
        lowest = math.log(SMALLEST)
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
    value = float(own.mean() - other.mean())
    apart = first.sums.mean(0) - second.sums.mean(0)
    flipped = flip_signs(apart, first.counts, seed, of)
    return Resampled(value, drawn, first.smallest(), several, flipped)


def flip_signs(apart: np.ndarray, counts: np.ndarray, seed: int, of: str = "") -> np.ndarray:
    """Return a difference and its variance (F, 2) under patterns of signs of the groups.

    Of up to ``ALL_SIGNS`` groups that differ at all, every pattern; of more, ``FLIPS`` drawn ones
    after the one that was seen. The variance is that of the delta method: the sum over groups of
    the squared mean over classes of (d - r n) / N, with d and n the group's difference and rows of
    a class, N the class's rows and r its difference by row.

    Args:
        apart: (G, C) sums of the first candidate minus those of the second.
        counts: (G, C) rows.
        seed: Seed of the patterns.
        of: Name of the set.
    """
    rows = counts.sum(0)
    part, weight = apart / (rows * len(rows)), counts / (rows * len(rows))
    own = part.sum(1)
    differ = np.abs(part).sum(1) > ROUNDING
    count = int(differ.sum())

    def under(signs: np.ndarray) -> np.ndarray:
        by_class = signs @ part[differ]  # (F, C)
        rate = by_class * len(rows)
        mixed = signs @ (own[:, None] * weight)[differ]
        variance = (own**2).sum() - 2 * (rate * mixed).sum(1)
        variance += (rate @ (weight.T @ weight) * rate).sum(1)
        return np.stack([by_class.sum(1), np.where(variance > ROUNDING, variance, 0.0)], axis=1)

    if count <= ALL_SIGNS:
        patterns = np.arange(1 << count)[:, None] >> np.arange(count) & 1
        return under(1.0 - 2.0 * patterns)
    random = stream(seed, "signs of groups", count, of)
    drawn = [under(np.ones((1, count)))]
    for _ in range(10):  # in parts, for memory
        drawn.append(under(2.0 * random.integers(0, 2, (FLIPS // 10, count), dtype=np.int8) - 1.0))
    return np.concatenate(drawn)


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
        _mean_of_flipped([e.flipped for e in estimates]),
    )


def _mean_of_flipped(flipped: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Combine independent sets: the seen patterns with each other, all others in random pairs."""
    known = [values for values in flipped if values is not None]
    if len(known) < len(flipped):
        return None
    rows = [stream(place, "signs of sets", FLIPS).integers(0, len(values), FLIPS)
            for place, values in enumerate(known)]  # fmt: skip
    picked = [values[np.append(0, r)] for values, r in zip(known, rows, strict=True)]
    value, variance = np.sum(picked, axis=0).T
    return np.stack([value / len(known), variance / len(known) ** 2], axis=1)
