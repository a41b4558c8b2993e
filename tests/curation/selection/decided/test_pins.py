import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.selection.decided.pins import decide
from echostill.platform.errors import UsageError

IDS = pa.array(["a", "b", "c", "d", "e"])


def test_masks_and_texts():
    excluded = pa.table({"image_id": ["d", "zz", "b"], "reason": ["blank", "lost", None]})
    pinned = pa.table({"image_id": ["a"]})
    found = decide(IDS, excluded, pinned)
    assert found.excluded.tolist() == [False, True, False, True, False]
    assert found.pinned.tolist() == [True, False, False, False, False]
    assert found.texts.to_pylist() == ["", "", "", "blank", ""]
    assert found.eligible.tolist() == [True, False, True, False, True]
    nothing = decide(IDS, None, pinned.slice(0, 0))
    assert not nothing.excluded.any()
    assert not nothing.pinned.any()
    assert nothing.texts.to_pylist() == [""] * 5


def test_several_reasons_of_one_image_are_joined_whatever_their_order():
    rows = [("c", "dark"), ("a", "x"), ("c", "blank"), ("c", "dark"), ("c", None), ("e", "y")]
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        table = pa.table(
            {
                "image_id": [rows[i][0] for i in order],
                "reason": [rows[i][1] for i in order],
            }
        )
        assert decide(IDS, table, None).texts.to_pylist() == ["x", "", "blank; dark", "", "y"]


def test_what_cannot_be_is_named():
    both = pa.table({"image_id": ["c", "b"]})
    with pytest.raises(UsageError, match=r"1 images are both pinned and excluded: c\."):
        decide(IDS, both, pa.table({"image_id": ["c"]}))
    with pytest.raises(UsageError, match="1 pinned images are not scored: nobody"):
        decide(IDS, None, pa.table({"image_id": ["a", "nobody"]}))
    with pytest.raises(UsageError, match="need a column 'image_id'; there are: id"):
        decide(IDS, pa.table({"id": ["a"]}), None)


def test_budgets_that_do_not_fit_say_the_numbers():
    found = decide(IDS, pa.table({"image_id": ["a", "b"]}), pa.table({"image_id": ["c", "d"]}))
    for budget in (2, 3):
        found.check(budget)
    with pytest.raises(UsageError, match="budget 1 is smaller than the 2 pinned"):
        found.check(1)
    with pytest.raises(UsageError, match="of 5 scored images 2 are excluded, which leaves 3"):
        found.check(4)
    assert np.array_equal(found.eligible, ~found.excluded)
