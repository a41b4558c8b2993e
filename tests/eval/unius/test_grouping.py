"""Groups joined with look-alikes, against a brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.eval.unius.grouping import merge_look_alikes
from echostill.platform.errors import EchostillError

ROW = st.tuples(st.integers(0, 6), st.integers(0, 8), st.sampled_from(["", "x", "y"]))


def brute_force(groups, sides, alike):
    """Join two rows of one group, and two alike rows of one side, until nothing changes."""
    own = list(groups)
    changed = True
    while changed:
        changed = False
        for i in range(len(own)):
            for j in range(len(own)):
                joined = groups[i] == groups[j] or (alike[i] == alike[j] and sides[i] == sides[j])
                if joined and own[i] != own[j]:
                    own[i] = own[j] = min(own[i], own[j])
                    changed = True
    return own


@given(st.lists(ROW, max_size=14), st.integers(0, 2))
def test_groups_are_the_components_and_named_after_the_first(rows, sides):
    groups = [f"g{group}" for group, _, _ in rows]
    alike = np.array([number for _, number, _ in rows], dtype=np.int64)
    side_of = {group: ["", "train", "test"][min(int(group[1:]) % 3, sides)] for group in groups}
    side = [side_of[group] for group in groups]
    merged = merge_look_alikes(groups, side, [label for _, _, label in rows], alike)
    assert merged.groups == brute_force(groups, side, alike.tolist())
    numbers = alike.tolist()
    assert merged.merged == sum(numbers.count(number) > 1 for number in numbers)
    several = [
        {label for _, other, label in rows if other == number and label} for number in set(numbers)
    ]
    assert merged.contradictions == sum(len(labels) > 1 for labels in several)


def test_look_alikes_on_two_official_sides_stay_apart_and_are_counted():
    merged = merge_look_alikes(
        ["a", "b", "c"], ["train", "test", "train"], ["x", "x", "x"], np.array([0, 0, 0])
    )
    assert merged.groups == ["a", "b", "a"]
    assert (merged.merged, merged.contradictions, merged.across) == (3, 0, 1)


def test_a_group_on_two_official_sides_is_an_error():
    with pytest.raises(EchostillError, match=r"group 'a' on two sides \('train' and 'test'\)"):
        merge_look_alikes(["a", "a"], ["train", "test"], ["", ""], np.array([0, 1]))
