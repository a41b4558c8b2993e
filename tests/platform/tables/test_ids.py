import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.platform.errors import UsageError
from echostill.platform.tables.ids import first_ids, pool_rows, rows_of_ids

KINDS = [pa.string(), pa.large_string()]


@given(
    st.lists(st.text(max_size=4), unique=True, max_size=12),
    st.data(),
    st.sampled_from(KINDS),
    st.sampled_from(KINDS),
)
def test_each_id_finds_its_row(known, data, one, other):
    wanted = data.draw(st.lists(st.sampled_from(known), max_size=20)) if known else []
    cut = data.draw(st.integers(0, len(wanted)))
    column = pa.chunked_array([wanted[:cut], wanted[cut:]], one)
    found = pool_rows(column, pa.array(known, other))
    assert found.dtype == np.int64
    assert found.tolist() == [known.index(text) for text in wanted]


def test_ids_that_are_nowhere_are_counted_and_named():
    with pytest.raises(
        UsageError,
        match=r"^4 scored images are not in the pool: b, c, d, \.\.\.\. The scores belong to",
    ):
        pool_rows(pa.array(list("abcde")), pa.array(["a"]))
    with pytest.raises(UsageError, match=r"^1 things are not in the box: b\. Look elsewhere\.$"):
        rows_of_ids(
            pa.array(["a", "b"]),
            pa.chunked_array([["a"]]),
            what="things",
            where="the box",
            advice="Look elsewhere.",
        )


def test_a_few_ids_are_named():
    ids = pa.array(list("abcd"))
    assert first_ids(ids, np.array([3])) == "d"
    assert first_ids(ids, np.array([0, 1, 3])) == "a, b, d"
    assert first_ids(ids, np.array([0, 1, 3, 2])) == "a, b, d, ..."
