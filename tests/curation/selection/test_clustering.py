import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.selection.clustering import (
    ClusteringSettings,
    cluster_count,
    cluster_features,
)
from echostill.platform.errors import UsageError


def names(rows):
    return pa.array([f"{row:032x}" for row in range(rows)])


def blobs(clusters, members, dimension=16, seed=0):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(clusters, dimension)) * 5
    owner = np.repeat(np.arange(clusters), members)
    return centres[owner] + generator.normal(size=(len(owner), dimension)) * 0.2, owner


@pytest.mark.parametrize(
    ("rows", "clusters", "expected"),
    [
        (1, "auto", 1),
        (3, "auto", 1),
        (8, "auto", 2),
        (16, "auto", 4),
        (300, "auto", 17),
        (2_200_000, "auto", 1000),
        (5, 9, 5),
        (9, 5, 5),
    ],
)
def test_number_of_clusters(rows, clusters, expected):
    assert cluster_count(rows, clusters) == expected


def test_no_clusters_is_refused():
    with pytest.raises(UsageError, match="clusters is 0"):
        cluster_count(10, 0)


def test_separate_blobs_are_found():
    features, owner = blobs(3, 30)
    found = cluster_features(features, names(90), ClusteringSettings(clusters=3, redo=4))
    assert found.count == found.requested == 3
    pairs = set(zip(owner.tolist(), found.assignment.tolist(), strict=True))
    assert len(pairs) == 3
    assert found.sizes.tolist() == [30, 30, 30]


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(st.integers(1, 80), st.integers(2, 24), st.integers(1, 12), st.integers(0, 10_000))
def test_against_float64(rows, dimension, clusters, seed):
    features = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float16)
    found = cluster_features(
        features, names(rows), ClusteringSettings(clusters=clusters, iterations=5, seed=seed)
    )
    exact = features.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    cosine = exact @ found.centroids.astype(np.float64).T
    own = cosine[np.arange(rows), found.assignment]
    assert np.all(own >= cosine.max(axis=1) - 1e-6)
    np.testing.assert_allclose(found.distance, np.maximum(1 - own, 0), atol=2e-7)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)
    assert sorted(set(found.assignment.tolist())) == list(range(found.count))
    assert found.assignment.dtype == np.int32
    assert found.distance.dtype == np.float32
    assert found.distance.min() >= 0
    assert found.sizes.sum() == rows


def test_same_seed_same_bytes_other_seed_other_start():
    features = np.random.default_rng(1).normal(size=(400, 8))
    first, again, other = (
        cluster_features(features, names(400), ClusteringSettings(seed=seed, iterations=3))
        for seed in (7, 7, 8)
    )
    assert first.centroids.tobytes() == again.centroids.tobytes()
    assert first.distance.tobytes() == again.distance.tobytes()
    assert first.centroids.tobytes() != other.centroids.tobytes()


def test_seed_may_exceed_32_bits():
    features = np.random.default_rng(1).normal(size=(20, 4))
    found = cluster_features(features, names(20), ClusteringSettings(seed=2**40 + 3))
    assert found.count >= 1


def test_trains_on_a_stated_sample_or_on_every_row():
    features = np.random.default_rng(2).normal(size=(1000, 4))
    usual = cluster_features(features, names(1000), ClusteringSettings(clusters=2))
    assert usual.training_rows == 512
    all_rows = cluster_features(
        features, names(1000), ClusteringSettings(clusters=2, max_points_per_centroid=None)
    )
    sample = cluster_features(
        features, names(1000), ClusteringSettings(clusters=2, max_points_per_centroid=100)
    )
    assert all_rows.training_rows == 1000
    assert sample.training_rows == 200
    # With all rows, each centroid is where the mean direction of its members points.
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for cluster in range(2):
        mean = unit[all_rows.assignment == cluster].sum(axis=0)
        mean /= np.linalg.norm(mean)
        assert mean @ all_rows.centroids[cluster] > 0.9999


def test_one_image():
    found = cluster_features(np.ones((1, 3)), names(1), ClusteringSettings())
    assert (found.count, found.assignment.tolist()) == (1, [0])
    assert found.distance[0] == pytest.approx(0, abs=1e-7)


def test_duplicates_leave_no_empty_cluster():
    features = np.tile(np.array([[1.0, 0, 0]]), (12, 1))
    features[10:] = [0, 1.0, 0]
    found = cluster_features(features, names(12), ClusteringSettings(clusters=6))
    assert found.requested == 6
    assert found.count <= 6
    assert found.sizes.min() >= 1
    assert len(set(found.assignment[:10].tolist())) == 1
    assert found.assignment[0] != found.assignment[11]
    np.testing.assert_allclose(found.distance, 0, atol=1e-6)


def test_opposite_features_do_not_make_nan():
    features = np.array([[1.0, 0], [-1.0, 0]])
    found = cluster_features(features, names(2), ClusteringSettings(clusters=1))
    assert np.isfinite(found.centroids).all()
    assert np.isfinite(found.distance).all()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_unusable_features_are_counted_and_named(value):
    features = np.random.default_rng(0).normal(size=(20, 4))
    features[[3, 5, 7, 11]] = value
    with pytest.raises(UsageError, match=r"4 of 20 features") as caught:
        cluster_features(features, names(20), ClusteringSettings())
    assert f"{3:032x}, {5:032x}, {7:032x}, ..." in str(caught.value)


def test_no_rows():
    with pytest.raises(UsageError, match="nothing to cluster"):
        cluster_features(np.empty((0, 4)), names(0), ClusteringSettings())
