import numpy as np
import pytest

from echostill.curation.selection.reasons import ordinal, ordinals, reasons


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0th"),
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (11, "11th"),
        (12, "12th"),
        (13, "13th"),
        (21, "21st"),
        (101, "101st"),
        (111, "111th"),
        (112, "112th"),
        (1003, "1003rd"),
        (1013, "1013th"),
        (2_200_022, "2200022nd"),
    ],
)
def test_ordinals(number, text):
    assert ordinal(number) == text


def test_ordinals_of_many():
    assert ordinals(np.arange(1, 5, dtype=np.int32)).to_pylist() == ["1st", "2nd", "3rd", "4th"]
    numbers = np.concatenate([np.arange(1200), [10**6 + 11, 2**31, 2**62 + 3]])
    assert ordinals(numbers).to_pylist() == [ordinal(number) for number in numbers]


def test_one_sentence_for_each_outcome():
    rows = 6
    found = reasons(
        np.arange(rows),
        np.array([3, 14, 17, 13, 1, 2]),
        np.full(rows, 7),
        np.full(rows, 41),
        np.array([12, 12, 12, 12, 0, 12]),
        better="better dual ranks",
        equal="equal dual ranks with smaller ids",
        max_per_group=1,
    )
    assert found.to_pylist() == [
        "selected: 3rd of 41 in cluster 7, quota 12",
        "selected: 14th of 41 in cluster 7, beyond quota 12, in a place that the group limit left "
        "open",
        "not selected: 17th of 41 in cluster 7, quota 12 was filled by better dual ranks",
        "not selected: 13th of 41 in cluster 7, quota 12 was filled by equal dual ranks with "
        "smaller ids",
        "not selected: 1st of 41 in cluster 7, quota 0 leaves it no place",
        "not selected: 2nd of 41 in cluster 7, quota 12, group limit: its group already has 1 "
        "image selected",
    ]
