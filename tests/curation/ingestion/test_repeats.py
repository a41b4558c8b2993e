import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.ingestion.identity import digest
from echostill.curation.ingestion.repeats import RepeatedIds

ROWS = st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("xyz")), max_size=12)


def settled(rows):
    counts = {image_id: sum(row[0] == image_id for row in rows) for image_id, _ in rows}
    settling = RepeatedIds(image_id for image_id, count in counts.items() if count > 1)
    found = settling.settle([row[0] for row in rows], [row[1] for row in rows])
    return found, settling.renamed


@settings(deadline=None, max_examples=200)
@given(ROWS)
def test_each_picture_under_an_id_is_one_row_with_an_id_of_its_own(rows):
    found, renamed = settled(rows)
    kept = [image_id for image_id in found if image_id is not None]
    assert len(kept) == len(set(kept)) == len(set(rows))
    for number, (row, image_id) in enumerate(zip(rows, found, strict=True)):
        before = rows[:number]
        assert (image_id is None) == (row in before)
        if image_id is None:
            continue
        first = not any(other[0] == row[0] for other in before)
        assert image_id == (row[0] if first else digest("content", *row))
    assert renamed == sum(
        image_id not in (None, row[0]) for row, image_id in zip(rows, found, strict=True)
    )


@settings(deadline=None, max_examples=100)
@given(ROWS, st.integers(0, 12))
def test_rows_that_were_settled_before_stay_as_they_are(rows, cut):
    """A shard that is read again later meets others that have been amended already."""
    whole, _ = settled(rows)
    earlier, _ = settled(rows[:cut])
    amended = [
        (image_id, content)
        for image_id, (_, content) in zip(earlier, rows[:cut], strict=True)
        if image_id is not None
    ]
    again, _ = settled([*amended, *rows[cut:]])
    kept = [image_id for image_id in again if image_id is not None]
    assert sorted(kept) == sorted(image_id for image_id in whole if image_id is not None)


def test_ids_that_occur_once_are_left_alone():
    ids = [f"{number:032x}" for number in range(50)]
    contents = [str(number % 3) for number in range(50)]
    assert RepeatedIds([]).settle(ids, contents) == ids


def test_order_decides_only_which_picture_keeps_the_id():
    rows = [("A", content) for content in "xyz"]
    for order in itertools.permutations(rows):
        found, renamed = settled(list(order))
        assert found[0] == "A"
        assert renamed == 2
        assert set(found[1:]) == {digest("content", "A", content) for _, content in order[1:]}
    with pytest.raises(ValueError, match="shorter"):
        RepeatedIds("A").settle(["A"], [])
    assert {len(image_id) for image_id in found[1:]} == {32}
