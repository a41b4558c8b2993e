import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.selection import reasons
from echostill.curation.selection.group_limit import automatic_limit, fill_within_group_limit
from echostill.platform.errors import UsageError


def fill(priority, cluster, quotas, groups, limit):
    quotas = np.array(quotas)
    return fill_within_group_limit(
        np.array(priority), np.array(cluster), quotas, pa.array(groups), limit, int(quotas.sum())
    ).tolist()


def test_passed_over_in_the_cluster_and_the_next_moves_up():
    assert fill([0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], [2], list("aabb"), 1) == [
        reasons.WITHIN_QUOTA,
        reasons.HELD_BACK,
        reasons.WITHIN_QUOTA,
        reasons.OUTRANKED,
    ]


def test_refilled_from_the_best_rows_of_other_clusters():
    # Cluster 0 holds one group only, so its second place goes to the best outranked row elsewhere.
    outcome = fill([0.1, 0.2, 0.15, 0.5, 0.4], [0, 0, 1, 1, 1], [2, 1], list("aabcd"), 1)
    assert outcome == [
        reasons.WITHIN_QUOTA,
        reasons.HELD_BACK,
        reasons.WITHIN_QUOTA,
        reasons.OUTRANKED,
        reasons.REFILLED,
    ]


def test_refill_passes_over_full_groups_too():
    outcome = fill([0.1, 0.2, 0.15, 0.3, 0.4], [0, 0, 1, 1, 1], [2, 1], list("aabbc"), 1)
    assert outcome == [
        reasons.WITHIN_QUOTA,
        reasons.HELD_BACK,
        reasons.WITHIN_QUOTA,
        reasons.HELD_BACK,
        reasons.REFILLED,
    ]


def test_ties_go_to_the_earlier_row():
    assert fill([0.5, 0.5], [0, 1], [1, 0], list("aa"), 1)[0] == reasons.WITHIN_QUOTA


def test_infeasible_budget_names_the_largest():
    with pytest.raises(UsageError, match="largest feasible budget is 3"):
        fill([0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], [4], list("aaab"), 2)


def test_pins_come_first_and_excluded_rows_never():
    outcome = fill_within_group_limit(
        np.array([0.1, 0.2, 0.3, 0.4, 0.5]),
        np.zeros(5, int),
        np.array([3]),
        pa.array(list("aabbc")),
        1,
        3,
        excluded=np.array([True, False, False, False, False]),
        pinned=np.array([False, False, True, True, False]),
    )
    # Both pins of group b stay beyond its limit; the first row is excluded, the second is best.
    assert outcome.tolist() == [
        reasons.OUTRANKED,
        reasons.WITHIN_QUOTA,
        reasons.WITHIN_QUOTA,
        reasons.WITHIN_QUOTA,
        reasons.OUTRANKED,
    ]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6))
def test_the_automatic_limit_meets_the_budget(seed):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, rng.integers(1, 9), rng.integers(1, 60)).astype(np.int64)
    group = np.unique(group, return_inverse=True)[1]
    excluded = rng.random(len(group)) < 0.2
    pinned = (rng.random(len(group)) < 0.1) & ~excluded
    left = int((~excluded).sum())
    if left < max(int(pinned.sum()), 1):
        return
    budget = int(rng.integers(max(int(pinned.sum()), 1), left + 1))
    limit = automatic_limit(group, budget, excluded, pinned)
    sizes = np.bincount(group[~excluded], minlength=group.max() + 1)
    pins = np.bincount(group[pinned], minlength=group.max() + 1)

    def places(number):
        return sum(max(min(size, number), pin) for size, pin in zip(sizes, pins, strict=True))

    smallest = next(number for number in range(1, left + 1) if places(number) >= budget)
    share = math.ceil(int(sizes.max()) * budget / int(sizes.sum()))
    expected = max(2 * smallest, share)
    assert limit == (expected if expected < sizes.max() else None)
