"""Division of a budget: how many images each cluster, organ or device contributes.

All computations use integers, so that rounding never misses a budget and every machine computes the
same quotas.
"""

from typing import Literal

import numpy as np

from echostill.platform.errors import UsageError

Rule = Literal["proportional", "square-root", "water-filling"]


def share(
    sizes: np.ndarray, budget: int, rule: Rule = "proportional", at_least: np.ndarray | None = None
) -> np.ndarray:
    """Divide a budget among parts of the pool.

    'proportional' is proportional to the sizes, 'square-root' to their square roots, and
    'water-filling' gives every part the same quota, or its size if that is less (sum of
    min(n, size) = budget; Vo et al. 2024). A share below its minimum or above its size is set to
    that bound, and the rest is divided again. Shares are rounded down; the remaining places go to
    the largest remainders, ties to the smaller index (Hamilton's method).

    Args:
        sizes: (k,) images that each part has.
        budget: from the sum of ``at_least`` to the sum of ``sizes``.
        rule: the rule for the shares.
        at_least: (k,) images that each part must contribute (pins); None for zeros.

    Returns:
        (k,) int64 that sum to the budget, each between ``at_least`` and ``sizes``.

    Raises:
        UsageError: The budget is outside these bounds.
    """
    high = np.asarray(sizes, dtype=np.int64)
    low = np.zeros_like(high) if at_least is None else np.asarray(at_least, dtype=np.int64)
    if not int(low.sum()) <= budget <= int(high.sum()):
        raise UsageError(
            f"cannot choose {budget} of {int(high.sum())} images: expected {int(low.sum())} to "
            f"{int(high.sum())}."
        )
    weights = _weights(high, rule)
    quotas = np.where(weights > 0, 0, low)
    free = weights > 0
    while free.any():
        left = budget - int(quotas[~free].sum())
        weight, total = weights[free], int(weights[free].sum())
        wanted = weight * left  # shares times total, exactly
        over, under = wanted > high[free] * total, wanted < low[free] * total
        if not (over.any() or under.any()):
            quotas[free] = _largest_remainders(wanted, total, left)
            break
        excess = int((wanted - high[free] * total)[over].sum())
        deficit = int((low[free] * total - wanted)[under].sum())
        fixed = np.flatnonzero(free)
        # The larger of the two violations certainly remains one after the rest is divided again.
        if excess >= deficit:
            quotas[fixed[over]] = high[fixed[over]]
            free[fixed[over]] = False
        if deficit >= excess:
            quotas[fixed[under]] = low[fixed[under]]
            free[fixed[under]] = False
    return quotas


def largest_remainder_quotas(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Divide a budget in proportion to sizes; see :func:`share`."""
    return share(sizes, budget, "proportional")


def tree_quotas(
    sizes: np.ndarray, parents: list[np.ndarray], budget: int, at_least: np.ndarray | None = None
) -> np.ndarray:
    """Divide a budget by water-filling down a tree of clusters (Vo et al. 2024).

    At the root the budget is divided among the top clusters, each share among the clusters below,
    and so on. Rare kinds of images have a branch of their own and are kept, while many similar
    images share one branch.

    Args:
        sizes: (k,) images that each leaf has.
        parents: for each level from the leaves upwards the (k_level,) parents of its clusters.
        budget: from the sum of ``at_least`` to the sum of ``sizes``.
        at_least: (k,) images that each leaf must contribute.

    Returns:
        (k,) int64, quotas of the leaves.
    """
    low = np.zeros(len(sizes), np.int64) if at_least is None else np.asarray(at_least, np.int64)
    highs, lows = [np.asarray(sizes, dtype=np.int64)], [low]
    for parent in parents:
        count = int(parent.max()) + 1
        highs.append(np.bincount(parent, highs[-1], count).astype(np.int64))
        lows.append(np.bincount(parent, lows[-1], count).astype(np.int64))
    quotas = share(highs[-1], budget, "water-filling", lows[-1])
    for level in range(len(parents) - 1, -1, -1):
        parent, above = parents[level], quotas
        quotas = np.zeros(len(parent), dtype=np.int64)
        for node in range(len(above)):
            children = np.flatnonzero(parent == node)
            quotas[children] = share(
                highs[level][children], int(above[node]), "water-filling", lows[level][children]
            )
    return quotas


def _weights(sizes: np.ndarray, rule: Rule) -> np.ndarray:
    if rule == "proportional":
        return sizes
    if rule == "square-root":
        roots: np.ndarray = np.floor(np.sqrt(sizes) * 2**16).astype(np.int64)
        return roots
    return (sizes > 0).astype(np.int64)


def _largest_remainders(wanted: np.ndarray, total: int, budget: int) -> np.ndarray:
    quotas, remainders = np.divmod(wanted, max(total, 1))
    left = budget - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:left]] += 1
    return quotas
