"""Comparisons that are made together: how likely one of them misleads stays below one level.

Holm, "A simple sequentially rejective multiple test procedure", 1979: whatever the comparisons
have to do with each other, the probability that any of those with a true difference of 0 is called
different is at most the level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from echostill.eval.statistics.bootstrap import Resampled

LEVEL = 0.05
Word = Literal["ahead", "behind", "not distinguished"]


@dataclass(frozen=True)
class Conclusion:
    """What may be said of a difference as one of a family.

    Attributes:
        value: The difference.
        low, high: Interval at the level of a single comparison.
        corrected_low, corrected_high: Interval at the level at which Holm's procedure tested it.
            For what it did not reach, this is the level where it stopped.
        p_value: Of the difference alone.
        adjusted: Holm's p-value: the smallest level of the family at which it is different.
        word: Not 'not distinguished' only where the corrected interval excludes 0.
    """

    value: float
    low: float
    high: float
    corrected_low: float
    corrected_high: float
    p_value: float
    adjusted: float
    word: Word


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's adjusted p-values (n,), in the order given."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def conclude(differences: Sequence[Resampled], level: float = LEVEL) -> list[Conclusion]:
    """Judge the differences of a family together.

    Args:
        differences: All comparisons that were planned, whatever came out.
        level: Largest probability that any of those without a true difference gets a word.
    """
    p_values = [item.p_value for item in differences]
    adjusted = holm(p_values)
    tested = step_levels(p_values, level)
    conclusions = []
    for item, own, p_value, share in zip(differences, adjusted, p_values, tested, strict=True):
        low, high = item.interval(level)
        corrected = item.interval(share)
        word: Word = "not distinguished"
        if own <= level and not corrected[0] <= 0 <= corrected[1]:
            word = "ahead" if item.value > 0 else "behind"
        left, right = corrected
        conclusions.append(
            Conclusion(item.value, low, high, left, right, p_value, float(own), word)
        )
    return conclusions


def groups_needed(comparisons: int, level: float = LEVEL) -> int:
    """Return the fewest groups with which any of so many comparisons can get a word.

    The p-value is smallest where all groups say the same, 2 ** (1 - groups), and Holm's procedure
    tests the smallest at ``level / comparisons``.
    """
    return math.ceil(1 + math.log2(max(comparisons, 1) / level))


def step_levels(p_values: Sequence[float], level: float = LEVEL) -> np.ndarray:
    """Return the level (n,) at which Holm's procedure tests each comparison.

    The smallest of n p-values is tested at ``level / n``, the next at ``level / (n - 1)``, and so
    on up to the first that fails; all after it get the level of that one.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    levels = level / np.arange(len(values), 0, -1)
    failed = np.flatnonzero(values[order] > levels)
    if len(failed):
        levels[failed[0] :] = levels[failed[0]]
    placed = np.empty_like(levels)
    placed[order] = levels
    return placed
