import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.selection.explain.comparison import compare_selections

ORGANS = ["liver", "heart", ""]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(-1, 2)), max_size=40))
def test_the_numbers_are_those_of_sets(rows):
    ids = [f"i{row:03d}" for row in range(len(rows))]
    a = np.array([row[0] for row in rows], dtype=bool)
    b = np.array([row[1] for row in rows], dtype=bool)
    codes = np.array([row[2] for row in rows], dtype=np.int64)
    found = compare_selections(
        np.array(ids), a, b, {"organ": (codes, ORGANS)}, names=("one", "two"), limit=5
    )
    first = {name for name, chosen in zip(ids, a, strict=True) if chosen}
    second = {name for name, chosen in zip(ids, b, strict=True) if chosen}
    assert found["both"] == len(first & second)
    assert (found["only_a"], found["only_b"]) == (len(first - second), len(second - first))
    assert found["entered"] == sorted(second - first)[:5]
    assert found["left"] == sorted(first - second)[:5]
    union = len(first | second)
    assert found["jaccard"] == (round(len(first & second) / union, 6) if union else 1.0)
    for item in found["by"]["organ"]:
        code = ORGANS.index(item["value"])
        inside = {name for name, own in zip(ids, codes, strict=True) if own == code}
        assert item["images"] == len(inside)
        assert (item["a"], item["b"]) == (len(first & inside), len(second & inside))
        assert item["share_a"] == round(len(first & inside) / max(1, len(first)), 6)
    shifts = [abs(item["shift"]) for item in found["by"]["organ"]]
    assert shifts == sorted(shifts, reverse=True)
    assert f"{len(first & second)} are in both" in found["text"]


def test_words_name_what_shifted():
    a = np.array([True, True, False, False])
    b = np.array([True, False, False, True])
    codes = np.array([0, 0, 1, 2])
    found = compare_selections(
        np.array(list("wxyz")), a, b, {"organ": (codes, ORGANS)}, names=("one", "two")
    )
    assert "liver 100.0% -> 50.0%" in found["text"]
    assert "unknown 0.0% -> 50.0%" in found["text"]
