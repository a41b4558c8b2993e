import pickle
from fractions import Fraction

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.selection.assignment import AssignPiece, on_grid, unit_rows
from echostill.curation.selection.features import ArrayFeatures


def case(rows, clusters, dimension, seed):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, dimension)) / np.sqrt(dimension)
    return features.astype(np.float16), on_grid(generator.normal(size=(clusters, dimension)))


def test_a_row_is_assigned_alike_in_any_block_and_with_any_threads():
    features, centroids = case(4000, 150, 96, 0)
    # Centroids that differ in their last digits only: single precision cannot tell them apart.
    centroids[75:] = np.round((centroids[:75] + 2.0**-24) * 2**24) / 2**24
    whole = AssignPiece(ArrayFeatures(features), centroids).assign(features)
    for threads in (1, 2):
        faiss.omp_set_num_threads(threads)
        for block in (1, 7, 100, 1500):
            assign = pickle.loads(pickle.dumps(AssignPiece(ArrayFeatures(features), centroids)))
            parts = [
                assign.assign(features[start : start + block]) for start in range(0, 1500, block)
            ]
            cluster = np.concatenate([part.cluster for part in parts])[:1500]
            distance = np.concatenate([part.distance for part in parts])[:1500]
            assert cluster.tobytes() == whole.cluster[:1500].tobytes()
            assert distance.tobytes() == whole.distance[:1500].tobytes()
    assert len(np.unique(whole.cluster)) > 100  # both of the twins get rows


@pytest.mark.parametrize("copies", [2, 4, 5, 30])
def test_more_twins_than_candidates(copies):
    features, centroids = case(500, 6, 32, 3)
    shifts = np.random.default_rng(0).integers(-2, 3, size=(copies, 6, 32)) * 2.0**-24
    crowd = (centroids + shifts).reshape(-1, 32).astype(np.float32)
    found = AssignPiece(ArrayFeatures(features), crowd).assign(features)
    centre = crowd.astype(np.float64)
    cosine = (features.astype(np.float64) @ centre.T) / np.linalg.norm(centre, axis=1)
    assert found.cluster.tolist() == cosine.argmax(axis=1).tolist()


def test_products_of_halves_are_exact_in_any_order():
    features, centroids = case(3, 2, 768, 1)
    exact = sum(
        Fraction(float(a)) * Fraction(float(b))
        for a, b in zip(features[0], centroids[0], strict=True)
    )
    forwards = features[0].astype(np.float64) @ centroids[0].astype(np.float64)
    backwards = features[0, ::-1].astype(np.float64) @ centroids[0, ::-1].astype(np.float64)
    assert Fraction(forwards) == Fraction(backwards) == exact


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 40), st.integers(0, 1000))
def test_against_float64(rows, clusters, dimension, seed):
    features, centroids = case(rows, clusters, dimension, seed)
    features = np.where(features == 0, np.float16(0.5), features)
    found = AssignPiece(ArrayFeatures(features), centroids).assign(features)
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centre = centroids.astype(np.float64)
    centre /= np.linalg.norm(centre, axis=1, keepdims=True)
    cosine = unit @ centre.T
    own = cosine[np.arange(rows), found.cluster]
    assert np.all(own >= cosine.max(axis=1) - 1e-14)
    np.testing.assert_allclose(found.distance, 1 - own, atol=1.3e-7)


def test_equal_centroids_tie_to_the_first():
    centroids = on_grid(np.array([[0, 1.0], [1.0, 0], [1.0, 0]]))
    block = np.array([[2.0, 0.0], [0.0, 3.0]], np.float16)
    assert AssignPiece(ArrayFeatures(block), centroids).assign(block).cluster.tolist() == [1, 0]


def test_centroids_lie_on_the_grid():
    centroids = on_grid(np.random.default_rng(0).normal(size=(40, 50)))
    scaled = centroids.astype(np.float64) * 2**24
    assert np.array_equal(scaled, np.round(scaled))
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)
    assert on_grid(np.zeros((1, 3))).tolist() == [[0, 0, 0]]


def test_rows_are_brought_to_unit_length():
    block = np.array([[3.0, 4.0], [0.0, -2.0]], np.float16)
    np.testing.assert_allclose(unit_rows(block), [[0.6, 0.8], [0, -1]], atol=1e-7)
