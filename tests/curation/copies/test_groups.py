"""Groups of copies against a plain loop and a plain search."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.copies.groups import (
    EXACT,
    NEAR,
    SEMANTIC,
    Links,
    exact_classes,
    group_copies,
)


@st.composite
def linked_rows(draw):
    rows = draw(st.integers(1, 25))
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    count = draw(st.integers(0, 40)) if rows > 1 else 0
    first = rng.integers(0, rows, count)
    second = (first + rng.integers(1, max(rows, 2), count)) % rows
    kind = rng.integers(EXACT, SEMANTIC + 1, count).astype(np.int8)
    distance = rng.integers(0, 4, count).astype(np.float32)
    return Links(first, second, kind, distance), rng.permutation(rows)


def components(links, rows):
    """Rows that reach each other, by walking."""
    near = {row: {row} for row in range(rows)}
    for one, other in zip(links.first.tolist(), links.second.tolist(), strict=True):
        near[one].add(other)
        near[other].add(one)
    found = []
    for row in range(rows):
        reached, todo = set(), [row]
        while todo:
            here = todo.pop()
            if here not in reached:
                reached.add(here)
                todo += near[here]
        found.append(frozenset(reached))
    return found, near


@settings(max_examples=200, deadline=None)
@given(linked_rows())
def test_rows_stay_as_one_after_the_other_would_decide(case):
    links, preference = case
    rows = len(preference)
    groups = group_copies(links, preference)
    reached, near = components(links, rows)
    stays = []
    for row in np.argsort(preference).tolist():
        if not near[row] & set(stays) - {row}:
            stays.append(row)
    for row in range(rows):
        assert (groups.kept[row] == row) == (row in stays)
        same = {other for other in range(rows) if groups.group[other] == groups.group[row]}
        if groups.group[row] < 0:
            assert len(near[row]) == 1
        else:
            assert same == reached[row]
        if row in stays:
            assert groups.kind[row] == -1
            assert groups.distance[row] == 0
            continue
        # A dropped row goes with a better copy of its own: the surest, the nearest, the preferred.
        options = []
        for one, other, kind, distance in zip(
            links.first, links.second, links.kind, links.distance, strict=True
        ):
            for mine, theirs in ((one, other), (other, one)):
                better = preference[theirs] < preference[mine]
                if mine == row and theirs in stays and better:
                    options.append((kind, distance, preference[theirs], theirs))
        kind, distance, _, kept = min(options)
        assert (groups.kind[row], groups.distance[row], groups.kept[row]) == (kind, distance, kept)


def test_in_a_chain_both_ends_stay():
    chain = Links.of(np.array([0, 1]), np.array([1, 2]), NEAR, np.array([3, 4]))
    assert group_copies(chain, np.array([0, 1, 2])).kept.tolist() == [0, 0, 2]
    assert group_copies(chain, np.array([1, 0, 2])).kept.tolist() == [1, 1, 1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=20), st.integers(0, 10**6))
def test_the_preferred_of_equal_rows_stands_for_them(digests, seed):
    preference = np.random.default_rng(seed).permutation(len(digests))
    found = exact_classes(np.array(digests, dtype="U1"), preference)
    for row, digest in enumerate(digests):
        same = [other for other, text in enumerate(digests) if text == digest]
        assert found[row] == min(same, key=lambda other: preference[other])
