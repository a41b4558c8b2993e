"""The group limit: a maximum number of images of one patient, study or clip in the coreset.

Neighbouring frames of one clip are near-duplicates, and several of them may rank first.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.selection import reasons
from echostill.platform.errors import UsageError

AUTO = 2  # times the smallest limit, for groups differ in how much there is to choose


def automatic_limit(
    group: np.ndarray, budget: int, excluded: np.ndarray, pinned: np.ndarray
) -> int | None:
    """Return a limit that keeps a few large groups from taking the budget.

    It is twice the smallest limit with which the budget can be met, or what the largest group would
    have in proportion to its size, if that is more. A tighter one makes coverage worse, and where
    clips are few it gives their places to junk, of which every image is a group of its own.

    Args:
        group: (N,) number of each row's group, from 0.
        budget: images to choose.
        excluded: (N,) bool, rows that are never chosen.
        pinned: (N,) bool, rows that are always chosen.

    Returns:
        The limit; None if no group has more images, so that it would limit nothing.
    """
    members = np.bincount(group[~excluded])
    pins = np.bincount(group[pinned], minlength=len(members))
    low, high = 1, int(members.max(initial=1))
    while low < high:
        middle = (low + high) // 2
        if int(np.maximum(np.minimum(members, middle), pins).sum()) >= budget:
            high = middle
        else:
            low = middle + 1
    largest, total = int(members.max(initial=0)), max(int(members.sum()), 1)
    limit = max(AUTO * low, -(-largest * budget // total))
    return limit if limit < largest else None


def group_numbers(group_ids: pa.Array) -> np.ndarray:
    """Number the groups, (N,) int64 from 0."""
    numbers: np.ndarray = pc.dictionary_encode(group_ids).indices.to_numpy().astype(np.int64)
    return numbers


def places_per_group(
    group_ids: pa.Array, limit: int, budget: int, excluded: np.ndarray, pinned: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the images that each group may have in the coreset.

    Args:
        group_ids: (N,) group of each row.
        limit: images that one group may have.
        budget: images to choose.
        excluded: (N,) bool, rows that are never chosen.
        pinned: (N,) bool, rows that are always chosen.

    Returns:
        (N,) number of each row's group, and (groups,) the images that each may have.

    Raises:
        UsageError: The budget cannot be met; the message gives the largest that can.
    """
    group = group_numbers(group_ids)
    total = int(group.max()) + 1
    members = np.bincount(group[~excluded], minlength=total)
    # Pins beyond the limit are kept: the limit applies only to other images.
    allowed = np.maximum(np.minimum(members, limit), np.bincount(group[pinned], minlength=total))
    feasible = int(allowed.sum())
    if budget > feasible:
        raise UsageError(
            f"budget {budget} cannot be met with max_per_group {limit}: the largest feasible "
            f"budget is {feasible}. Lower the budget or raise max_per_group."
        )
    return group, allowed


def fill_within_group_limit(
    priority: np.ndarray,
    cluster: np.ndarray,
    quotas: np.ndarray,
    group_ids: pa.Array,
    limit: int,
    budget: int,
    excluded: np.ndarray | None = None,
    pinned: np.ndarray | None = None,
) -> np.ndarray:
    """Fill the quotas best row first, skip rows whose group is full, then refill.

    Places that a quota cannot fill go to the best remaining rows of all clusters. Any selection
    that cannot be extended has the largest possible size here (one limit per group), so the budget
    is met whenever it can be. Each decision depends on those before it, hence the loops over rows.

    Args:
        priority: (N,) smaller is chosen first; rows are sorted by id, so ties are broken by id.
        cluster: (N,) cluster (or other unit that has a quota) of each row.
        quotas: (k,) quota of each cluster; they sum to the budget.
        group_ids: (N,) group of each row.
        limit: images that one group may have.
        budget: images to choose.
        excluded: (N,) bool, rows that are never chosen; None for none.
        pinned: (N,) bool, rows that are always chosen and first, even beyond the limit.

    Returns:
        (N,) outcomes as in ``reasons``: WITHIN_QUOTA, REFILLED, HELD_BACK or OUTRANKED.

    Raises:
        UsageError: The budget cannot be met within the limit; the message gives the largest.
    """
    never = np.zeros(len(group_ids), bool) if excluded is None else excluded
    always = np.zeros(len(group_ids), bool) if pinned is None else pinned
    group, allowed = places_per_group(group_ids, limit, budget, never, always)
    pins = np.bincount(group[always], minlength=len(allowed))
    outcome = np.full(len(group), reasons.OUTRANKED)
    outcome[always] = reasons.WITHIN_QUOTA
    room: list[int] = (quotas - np.bincount(cluster[always], minlength=len(quotas))).tolist()
    free: list[int] = (allowed - pins).tolist()
    order = np.argsort(priority, kind="stable")
    order = order[~(never | always)[order]]
    left = budget - int(always.sum())
    held: list[int] = []
    taken: list[int] = []
    passed: list[int] = []
    for row, own, its_group in zip(
        order.tolist(), cluster[order].tolist(), group[order].tolist(), strict=True
    ):
        if room[own] == 0:
            passed.append(row)
        elif free[its_group] == 0:
            held.append(row)
        else:
            taken.append(row)
            room[own] -= 1
            free[its_group] -= 1
            left -= 1
    outcome[taken], outcome[held] = reasons.WITHIN_QUOTA, reasons.HELD_BACK
    groups = group[passed].tolist() if left else []
    for row, its_group in zip(passed, groups, strict=False):
        if left == 0:
            break
        if free[its_group] == 0:
            outcome[row] = reasons.HELD_BACK
            continue
        outcome[row] = reasons.REFILLED
        free[its_group] -= 1
        left -= 1
    return outcome
