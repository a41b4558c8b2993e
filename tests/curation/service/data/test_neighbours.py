import json

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.service.data.neighbours import (
    ExactNeighbours,
    NeighbourIndex,
    bits,
    build_neighbours,
    list_count,
    recall_of,
)
from echostill.platform.tables.schemas import scores_schema
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table, write_table

pytestmark = pytest.mark.slow

DIMENSION = 24


def unit(rows, seed=0, clusters=50):
    numbers = np.random.default_rng(seed)
    centres = numbers.normal(size=(clusters, DIMENSION))
    found = centres[numbers.integers(0, clusters, rows)] + 0.4 * numbers.normal(
        size=(rows, DIMENSION)
    )
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float16)


def table_of(folder, features):
    rows = len(features)
    zeros = pa.array(np.zeros(rows, np.float32))
    table = pa.table(
        [
            pa.array([f"{row:032x}" for row in range(rows)]),
            pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), DIMENSION),
            zeros,
            zeros,
            pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 3, np.float32)), 3),
            zeros,
        ],
        schema=scores_schema(DIMENSION, 3),
    )
    storage = Storage(str(folder))
    write_table(storage, table, stage="score", fingerprint={}, rows_per_part=7000)
    return Table.open(storage, "score")


@pytest.fixture(scope="module", params=[900, 21_000], ids=["one list", "many lists"])
def indexed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    features = unit(request.param)
    # The catalogue has more rows than were scored, in another order.
    rows = np.random.default_rng(1).permutation(request.param + 100)[: request.param]
    (folder / "made").mkdir()
    stages = []
    build_neighbours(
        table_of(folder / "scores", features),
        rows,
        folder / "made",
        lambda stage, fraction: stages.append((stage, fraction)),
    )
    fractions = [round(fraction, 6) for _, fraction in stages]
    assert fractions == sorted(fractions)
    return NeighbourIndex(folder / "made"), features.astype(np.float64), rows


def test_lists_grow_with_the_pool():
    assert list_count(1000) == 1
    assert list_count(19_999) == 1
    assert list_count(3_000_000) == 4096
    assert 256 <= list_count(30_000) <= 1024


def test_neighbours_are_those_of_an_exact_search(indexed):
    index, features, rows = indexed
    queries = np.random.default_rng(2).choice(len(features), 100, replace=False)
    found, true = [], []
    for query in queries:
        near = index.search(features[query], 10)
        found.append([item.row for item in near])
        similarity = features @ features[query]
        true.append(rows[np.argsort(-similarity)[:10]])
        assert near[0].row == rows[query]
        values = [item.similarity for item in near]
        assert values == sorted(values, reverse=True)
        by_row = dict(zip(rows, similarity, strict=True))
        assert values == pytest.approx([by_row[item.row] for item in near], abs=0.02)
    assert recall_of(np.array(found), np.array(true)) >= 0.95


def test_the_measured_recall_is_written_down(indexed):
    index, _, _ = indexed
    assert 0.95 <= index.description["recall_at_10"] <= 1
    assert index.description["probes"] <= index.description["lists"]


def test_a_rows_own_vector_is_kept(indexed):
    index, features, rows = indexed
    for place in (0, 17, len(rows) - 1):
        vector = index.vector(int(rows[place]))
        assert vector @ features[place] / np.linalg.norm(vector) > 0.999
    missing = set(range(len(rows) + 100)) - set(rows.tolist())
    assert index.vector(min(missing)) is None
    assert index.vector(10**9) is None


def test_only_kept_rows_are_found(indexed):
    index, features, rows = indexed
    size = len(rows) + 100
    keep = np.zeros(size, dtype=bool)
    keep[rows[::7]] = True
    found = index.search(features[3], 10, bits(keep))
    assert found
    assert all(keep[item.row] for item in found)


def test_searches_run_side_by_side(indexed):
    from concurrent.futures import ThreadPoolExecutor

    index, features, rows = indexed
    with ThreadPoolExecutor(8) as pool:
        nearest = list(pool.map(lambda place: index.search(features[place], 1)[0].row, range(400)))
    assert nearest == rows[:400].tolist()


def test_exact_neighbours_of_passing_blocks():
    features = unit(500).astype(np.float32)
    exact = ExactNeighbours(features[:20], 5)
    for start in range(0, 500, 90):
        block = features[start : start + 90]
        exact.add(block, np.arange(start, start + len(block)))
    expected = np.argsort(-(features[:20] @ features.T), axis=1)[:, :5]
    assert np.array_equal(np.sort(exact.rows), np.sort(expected))


def test_fewer_rows_than_neighbours(tmp_path):
    (tmp_path / "made").mkdir()
    features = unit(4)
    table = table_of(tmp_path / "scores", features)
    build_neighbours(table, np.arange(4), tmp_path / "made", lambda stage, fraction: None)
    index = NeighbourIndex(tmp_path / "made")
    assert len(index.search(features[0].astype(np.float32), 10)) == 4
    assert json.loads((tmp_path / "made" / "neighbours.json").read_text())["rows"] == 4
