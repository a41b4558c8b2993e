import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.selection.quotas import share, tree_quotas
from echostill.platform.errors import UsageError

RULES = ("proportional", "square-root", "water-filling")


def level(weights, low, high, budget):
    """The real shares: clip(t * weight, low, high) with the t at which they sum to the budget."""
    few, many = 0.0, 1e9
    for _ in range(300):
        middle = (few + many) / 2
        if np.clip(middle * weights, low, high).sum() < budget:
            few = middle
        else:
            many = middle
    return np.clip(many * weights, low, high)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0, 1)), min_size=1, max_size=10),
    st.sampled_from(RULES),
    st.floats(0, 1),
    st.booleans(),
)
def test_shares_stay_within_a_place_of_the_bounded_shares(parts, rule, where, pinned):
    sizes = np.array([size for size, _ in parts])
    low = np.array([int(size * part) for size, part in parts]) if pinned else np.zeros_like(sizes)
    budget = int(low.sum() + where * (sizes.sum() - low.sum()))
    quotas = share(sizes, budget, rule, low if pinned else None)
    assert quotas.sum() == budget
    assert np.all(quotas <= sizes)
    assert np.all(quotas >= low)
    weights = {
        "proportional": sizes.astype(float),
        "square-root": np.sqrt(sizes),
        "water-filling": (sizes > 0).astype(float),
    }[rule]
    exact = level(weights, low, sizes, budget)
    # The root is taken to 16 bits: near a whole number its share may fall on either side of it.
    assert np.all(np.abs(quotas - exact) < 1 + 1e-3)


def test_shares_by_hand():
    sizes = np.array([100, 25, 1, 0])
    assert share(sizes, 16, "square-root").tolist() == [10, 5, 1, 0]
    assert share(sizes, 61, "water-filling").tolist() == [35, 25, 1, 0]
    assert share(sizes, 63, "proportional").tolist() == [50, 13, 0, 0]  # 50, 12.5, 0.5, 0
    # Two pins in the smallest part take places from the others, in proportion.
    assert share(np.array([6, 6, 2]), 7, "proportional", np.array([0, 0, 2])).tolist() == [3, 2, 2]
    with pytest.raises(UsageError, match="cannot choose 127 of 126 images"):
        share(sizes, 127)


def test_ties_go_to_the_smaller_index():
    assert share(np.array([9, 9, 9]), 8, "water-filling").tolist() == [3, 3, 2]


def test_water_runs_down_the_tree():
    # Leaves 0 to 2 are alike and share a branch; leaf 3 is alone in its own.
    sizes = np.array([30, 30, 30, 30])
    parents = [np.array([0, 0, 0, 1])]
    assert tree_quotas(sizes, parents, 12).tolist() == [2, 2, 2, 6]
    # A branch that runs dry leaves the rest to the other.
    assert tree_quotas(np.array([30, 30, 30, 4]), parents, 13).tolist() == [3, 3, 3, 4]
    pinned = tree_quotas(sizes, parents, 12, np.array([5, 0, 0, 0]))
    assert pinned.tolist() == [5, 1, 0, 6]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(0, 2**20))
def test_a_tree_meets_every_budget(budget, seed):
    generator = np.random.default_rng(seed)
    sizes = generator.integers(0, 60, 20)
    parents = [generator.integers(0, 5, 20), generator.integers(0, 2, 5)]
    parents = [np.unique(level, return_inverse=True)[1] for level in parents[:1]]
    parents.append(np.arange(int(parents[0].max()) + 1) % 2)
    low = generator.integers(0, sizes // 3 + 1)
    budget = min(max(budget, int(low.sum())), int(sizes.sum()))
    quotas = tree_quotas(sizes, parents, budget, low)
    assert quotas.sum() == budget
    assert np.all(quotas <= sizes)
    assert np.all(quotas >= low)
