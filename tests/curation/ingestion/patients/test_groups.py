from collections import Counter

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.ingestion.patients.groups import GroupCounts, count_groups


def part(*rows):
    names = {"group_id": pa.string(), "source": pa.string()}
    columns = list(zip(*rows, strict=True)) or [(), ()]
    return pa.table(
        {name: pa.array(c, t) for (name, t), c in zip(names.items(), columns, strict=True)}
    )


def files(group, number, start=0):
    return [(group, f"{group}/{start + place}.png") for place in range(number)]


@given(st.lists(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y#1", "y#2"])))))
def test_groups_are_counted_over_the_parts(parts):
    found = count_groups(part(*rows) for rows in parts)
    counts = Counter(group for rows in parts for group, _ in rows)
    assert (found.count, found.images) == (len(counts), counts.total())
    if counts:
        assert found.largest_images == max(counts.values()) == counts[found.largest]


def test_a_group_that_holds_too_much_is_a_mistake():
    patients = [row for number in range(20) for row in files(f"p{number}", 3)]
    assert not count_groups([part(*patients)]).suspicious
    found = count_groups([part(*patients), part(*files("ANON", 60))])
    assert found.suspicious
    assert "'ANON', holds 60 of 120 images (50%)" in found.warning()
    assert found.describe() == "21 groups, the largest of 60 images (50%)"
    assert count_groups([part(*files("all", 40))]).suspicious


def test_a_cine_and_a_small_study_are_none():
    cine = [("clip", f"cine.dcm#{frame}") for frame in range(400)]
    assert not count_groups([part(*cine, *files("p", 3))]).suspicious
    assert not count_groups([part(*files("a", 9), *files("b", 7), *files("c", 8))]).suspicious
    assert count_groups([part(*files("one", 1))]).describe() == (
        "1 group, the largest of 1 image (100%)"
    )
    assert (count_groups([]).describe(), GroupCounts().warning()) == ("no groups", "")
