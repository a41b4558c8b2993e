"""k-means against Lloyd's iterations in double precision, and against FAISS's own habits."""

import faiss
import numpy as np
import pytest

from echostill.curation.selection.kmeans import flat_index, train_centroids
from echostill.platform.errors import UsageError


def units(rows, dimension, seed):
    values = np.random.default_rng(seed).normal(size=(rows, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def test_one_more_iteration_is_a_step_of_lloyd():
    sample = units(900, 6, 0)
    before = train_centroids(sample, 7, iterations=9, seed=4)
    after = train_centroids(sample, 7, iterations=10, seed=4)
    nearest = (sample.astype(np.float64) @ before.T.astype(np.float64)).argmax(axis=1)
    sums = np.stack([sample[nearest == k].astype(np.float64).sum(axis=0) for k in range(7)])
    expected = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    np.testing.assert_allclose(after, expected, atol=1e-6)


def test_every_row_is_used_and_more_iterations_lose_nothing():
    """FAISS by itself takes 256 rows per cluster, without a word."""
    sample = units(4000, 5, 1)
    quality = []
    for iterations in (1, 5, 25):
        centroids = train_centroids(sample, 3, iterations=iterations, seed=0)
        quality.append(float((sample @ centroids.T).max(axis=1).sum()))
    assert quality == sorted(quality)
    one = train_centroids(sample, 1, iterations=3, seed=0)
    mean = sample.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(one[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_it_is_what_faiss_calls_k_means():
    sample = units(500, 8, 2)
    theirs = faiss.Kmeans(
        8,
        11,
        niter=6,
        nredo=2,
        seed=5,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=500,
    )
    theirs.train(sample)
    ours = train_centroids(sample, 11, iterations=6, seed=5, redo=2)
    np.testing.assert_array_equal(ours, theirs.centroids)
    mine, other = flat_index(ours).search(sample, 1), theirs.index.search(sample, 1)
    np.testing.assert_array_equal(mine[1], other[1])


def test_seed_rows_and_type():
    sample = units(300, 4, 3)
    one = train_centroids(sample, 5, iterations=4, seed=1)
    np.testing.assert_array_equal(one, train_centroids(sample, 5, iterations=4, seed=1 + 2**31))
    assert not np.array_equal(one, train_centroids(sample, 5, iterations=4, seed=2))
    strided = np.repeat(sample, 2, axis=0)[::2].astype(np.float64)
    np.testing.assert_array_equal(one, train_centroids(strided, 5, iterations=4, seed=1))
    assert one.shape == (5, 4)
    assert one.dtype == np.float32


def test_as_many_clusters_as_rows():
    sample = units(6, 3, 4)
    found = train_centroids(sample, 6, iterations=3, seed=0)
    assert sorted(map(tuple, np.round(found, 5).tolist())) == sorted(
        map(tuple, np.round(sample, 5).tolist())
    )


def test_a_gpu_that_is_not_there_is_named():
    if faiss.get_num_gpus() > 0:
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError, match=r"gpus \[1\]: FAISS sees 0"):
        flat_index(np.zeros((0, 4), np.float32), (1,))
