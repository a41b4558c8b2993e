"""Semantic copies against all pairs of a small set."""

import numpy as np
import pyarrow as pa
import pytest

from echostill.curation.copies import semantic
from echostill.curation.copies.semantic import (
    centred,
    mean_feature,
    nearest_features,
    semantic_pairs,
)
from echostill.curation.selection.features import ArrayFeatures, TableFeatures
from echostill.platform.tables.schemas import scores_schema
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import Table, write_table

ROWS, DIMENSION, EPSILON = 300, 12, 0.02


@pytest.fixture
def features():
    """Features that all point much the same way, some of them copies with a little noise."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(ROWS, DIMENSION)) + 20
    base[200:] = base[:100] + rng.normal(scale=0.05, size=(100, DIMENSION))
    return (base / np.linalg.norm(base, axis=1, keepdims=True)).astype(np.float16)


def cosines(features, mean):
    moved = features.astype(np.float64) - mean
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return moved @ moved.T


def test_pairs_are_those_inside_clusters(features):
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    labels = np.arange(ROWS) // 2
    first, second, gap = semantic_pairs(ArrayFeatures(features), mean, labels, EPSILON, seed=0)
    cosine = cosines(features, mean)
    cluster = semantic._assign(ArrayFeatures(features), mean, seed=0)
    expected = {
        (i, j)
        for i in range(ROWS)
        for j in range(i + 1, ROWS)
        if cosine[i, j] >= 1 - EPSILON and cluster[i] == cluster[j] and labels[i] != labels[j]
    }
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
    np.testing.assert_allclose(gap, 1 - cosine[first, second], atol=1e-5)
    assert len(expected) >= 80  # of the hundred that were planted; a cluster's border may cut some


def test_raw_cosines_would_call_all_of_them_alike(features):
    zero = np.zeros(DIMENSION, dtype=np.float32)
    raw = semantic_pairs(ArrayFeatures(features), zero, np.arange(ROWS), EPSILON, seed=0)[0]
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    own = semantic_pairs(ArrayFeatures(features), mean, np.arange(ROWS), EPSILON, seed=0)[0]
    assert len(raw) > 10 * len(own)


@pytest.mark.parametrize("rows", [0, 1, 2, 9])
def test_few_rows(features, rows):
    mean = np.zeros(DIMENSION, dtype=np.float32)
    first, second, gap = semantic_pairs(
        ArrayFeatures(features[:rows]), mean, np.arange(rows), 1.0, seed=0
    )
    assert len(first) == len(second) == len(gap) <= rows * (rows - 1) // 2


def test_the_nearest_of_another_set(features):
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    row, other, gap = nearest_features(ArrayFeatures(features[200:]), mean, features[:200], EPSILON)
    cosine = cosines(features, mean)[200:, :200]
    expected = np.flatnonzero(cosine.max(axis=1) >= 1 - EPSILON)
    assert row.tolist() == expected.tolist()
    np.testing.assert_allclose(gap, 1 - cosine.max(axis=1)[expected], atol=1e-5)
    assert (other == cosine.argmax(axis=1)[expected]).mean() > 0.99


def test_a_row_at_the_mean_is_like_no_other():
    mean = np.full(3, 0.5, dtype=np.float32)
    assert centred(np.array([[0.5, 0.5, 0.5]], dtype=np.float16), mean).tolist() == [[0, 0, 0]]


def test_features_are_read_in_the_tables_order(features, tmp_path):
    schema = scores_schema(DIMENSION, 1)
    empty = schema.empty_table()
    rows = {
        "image_id": pa.array([f"{row:032x}" for row in range(ROWS)]),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), DIMENSION),
    }
    columns = [rows.get(name, pa.nulls(ROWS, empty[name].type)) for name in schema.names]
    storage = Storage(str(tmp_path))
    table = pa.table(columns, schema=schema)
    manifest = write_table(storage, table, stage="score", fingerprint={}, rows_per_part=70)
    found = TableFeatures(Table(storage, manifest))
    mean = mean_feature(found)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=0), rtol=1e-6)
    labels = np.arange(ROWS)
    for one, other in zip(
        semantic_pairs(found, mean, labels, EPSILON, seed=0),
        semantic_pairs(ArrayFeatures(features), mean, labels, EPSILON, seed=0),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("passes", [1, 3, 40, 300])
def test_clusters_are_the_same_in_any_number_of_passes(features, monkeypatch, passes):
    cluster = np.random.default_rng(1).integers(0, 12, ROWS)
    monkeypatch.setattr(semantic, "BYTES_PER_PASS", 2 * DIMENSION * (ROWS // passes))
    read = []

    class Counted(ArrayFeatures):
        def blocks(self, piece):
            read.append(piece)
            return super().blocks(piece)

    found = list(semantic._clusters(Counted(features), cluster))
    assert len(found) == len(np.unique(cluster))
    for number, (members, rows) in enumerate(found):
        np.testing.assert_array_equal(members, np.flatnonzero(cluster == number))
        np.testing.assert_array_equal(rows, features[members])
    assert len(read) == {1: 1, 3: 4, 40: 12, 300: 12}[passes]


def test_features_that_hold_several_chunks(monkeypatch):
    rng = np.random.default_rng(2)
    values = rng.normal(size=(900, 5)).astype(np.float16)
    mean = mean_feature(ArrayFeatures(values))
    whole = nearest_features(ArrayFeatures(values), mean, values[:50], 0.01)
    monkeypatch.setattr(semantic, "ROWS_PER_CHUNK", 64)
    for one, other in zip(
        whole, nearest_features(ArrayFeatures(values), mean, values[:50], 0.01), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    found = zip(whole[0].tolist(), whole[1].tolist(), strict=True)
    assert {(row, row) for row in range(50)} <= set(found)
