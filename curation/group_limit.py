"""The group limit: at most so many images of one patient, study or clip in the coreset.

Neighbouring frames of one clip are near-duplicates, and several of them may rank first.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation import reasons
from echostill.platform.errors import UsageError


def fill_within_group_limit(
    priority: np.ndarray,
    cluster: np.ndarray,
    quotas: np.ndarray,
    group_ids: pa.Array,
    limit: int,
    budget: int,
) -> np.ndarray:
    """Fill the quotas best row first, pass over rows whose group is full, then refill.

    Places that a quota cannot fill go to the best remaining rows of all clusters. Any selection
    that cannot be extended has the largest possible size here (one limit per group), so the budget
    is met whenever it can be. Each decision depends on those before it, hence the loops over rows.

    Args:
        priority: (N,) smaller is taken first; rows are in the order of their ids: ties go by id.
        cluster: (N,) cluster of each row.
        quotas: (k,) quota of each cluster; they sum to the budget.
        group_ids: (N,) group of each row.
        limit: images that one group may have.
        budget: images to choose.

    Returns:
        (N,) outcomes as in ``reasons``: WITHIN_QUOTA, REFILLED, HELD_BACK or OUTRANKED.

    Raises:
        UsageError: The budget exceeds what the limit allows; the message says the largest.
    """
    group = pc.dictionary_encode(group_ids).indices.to_numpy()
    feasible = int(np.minimum(np.bincount(group), limit).sum())
    if budget > feasible:
        raise UsageError(
            f"budget {budget} cannot be met with max_per_group {limit}: the largest feasible "
            f"budget is {feasible}. Lower the budget or raise max_per_group."
        )
    outcome = [reasons.OUTRANKED] * len(group)
    room: list[int] = quotas.tolist()
    free = [limit] * (int(group.max()) + 1)
    clusters, groups = cluster.tolist(), group.tolist()
    best_first = np.argsort(priority, kind="stable").tolist()
    left = budget
    for row in best_first:
        if room[clusters[row]] == 0:
            continue
        if free[groups[row]] == 0:
            outcome[row] = reasons.HELD_BACK
            continue
        outcome[row] = reasons.WITHIN_QUOTA
        room[clusters[row]] -= 1
        free[groups[row]] -= 1
        left -= 1
    for row in best_first:
        if left == 0:
            break
        if outcome[row] != reasons.OUTRANKED:
            continue
        if free[groups[row]] == 0:
            outcome[row] = reasons.HELD_BACK
            continue
        outcome[row] = reasons.REFILLED
        free[groups[row]] -= 1
        left -= 1
    return np.array(outcome)
