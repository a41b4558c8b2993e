import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.curation.selection import features as module
from echostill.curation.selection.features import (
    ArrayFeatures,
    ColumnFeatures,
    TableFeatures,
    all_blocks,
    joined,
    matrix_of,
    usable_rows,
)
from echostill.platform.errors import UsageError
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table, write_table

HALVES = pa.list_(pa.field("element", pa.float16()), 3)


def chunk(part):
    return pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), type=HALVES)


def sources(rows, folder, rows_per_part):
    whole = chunk(rows)
    column = pa.chunked_array([chunk(rows[:4]), whole.slice(4, 5), whole.slice(9)])
    storage = Storage(str(folder))
    write_table(
        storage,
        pa.table({"feature": column}, schema=pa.schema([("feature", HALVES)])),
        stage="score",
        fingerprint={},
        rows_per_part=rows_per_part,
    )
    return ArrayFeatures(rows), ColumnFeatures(column), TableFeatures(Table.open(storage, "score"))


def test_every_source_gives_the_same_rows(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float16)
    monkeypatch.setattr(module, "ROWS_PER_PIECE", 4000)
    order = np.random.default_rng(1).permutation(len(rows))
    for source in sources(rows, tmp_path, 8500):
        travelled = pickle.loads(pickle.dumps(source))
        assert travelled.dimension == 3
        assert sum(travelled.counts) == len(rows)
        blocks = [b for piece in range(len(travelled.counts)) for b in travelled.blocks(piece)]
        assert max(map(len, blocks)) <= module.ROWS_PER_BLOCK
        np.testing.assert_array_equal(np.concatenate(blocks), rows)
        found = matrix_of(source, order)
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, rows[order])


def test_large_parts_are_divided_by_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_PIECE", 4000)
    rows = np.ones((20_000, 3), np.float16)
    on_disk = sources(rows, tmp_path, 20_000)[2]
    assert on_disk.counts == [8192, 8192, 3616]  # the row groups that parts are written in


def test_what_is_no_feature_is_refused(tmp_path):
    with pytest.raises(UsageError, match="fixed-size"):
        ColumnFeatures(pa.chunked_array([pa.array([[1.0], [2.0]])])).dimension  # noqa: B018
    lists = pa.array([[1.0, 2.0], None], type=pa.list_(pa.float32(), 2))
    with pytest.raises(UsageError, match="nulls"):
        list(ColumnFeatures(pa.chunked_array([lists])).blocks(0))
    storage = Storage(str(tmp_path))
    write_table(storage, pa.table({"image_id": ["a"]}), stage="score", fingerprint={})
    with pytest.raises(UsageError, match="missing"):
        TableFeatures(Table.open(storage, "score")).dimension  # noqa: B018


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_usable_rows(kind):
    rows = np.ones((7, 4), dtype=kind)
    rows[1, 2], rows[2, 0], rows[3, 3] = np.nan, np.inf, -np.inf
    rows[4] = 0.0
    rows[5] = [0, -0.0, 0, np.finfo(np.float16).smallest_subnormal]
    rows[6] = [-0.0, 0, 0, 0]
    assert usable_rows(rows).tolist() == [True, False, False, False, False, True, False]


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_joined_blocks_hold_the_rows_in_order(sizes, rows):
    values = np.arange(2 * sum(sizes)).reshape(-1, 2)
    blocks = np.split(values, np.cumsum(sizes)[:-1]) if sizes else []
    found = list(joined(blocks, rows))
    assert [len(block) for block in found[:-1]] == [rows] * max(len(found) - 1, 0)
    assert all(0 < len(block) <= rows for block in found)
    np.testing.assert_array_equal(np.concatenate([values[:0], *found]), values)


def test_all_blocks_are_all_rows(monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_PIECE", 300)
    rows = np.random.default_rng(0).normal(size=(1000, 3))
    np.testing.assert_array_equal(np.concatenate(list(all_blocks(ArrayFeatures(rows)))), rows)
