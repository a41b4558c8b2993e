"""k-means against Lloyd's iterations in double precision, and against FAISS's own habits."""

import sys

import faiss
import numpy as np
import pytest

from echostill.curation.selection.kmeans import flat_index, train_centroids, usable_gpus
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


class FakeFaiss:
    """FAISS with GPUs, as far as choosing them needs it; computes on the CPU."""

    __version__ = "1.15.1"
    IndexFlatIP = faiss.IndexFlatIP

    def __init__(self, gpus, broken=()):
        self.gpus, self.broken, self.asked = gpus, broken, []

    def get_num_gpus(self):
        return self.gpus

    def StandardGpuResources(self):
        return object()

    class GpuMultipleClonerOptions:
        shard = True

    def index_cpu_to_gpu_multiple_py(self, resources, index, options, gpus):
        assert len(resources) == len(gpus)
        assert options.shard is False
        self.asked.append(gpus)
        if set(gpus) & set(self.broken):
            raise RuntimeError("Error in StandardGpuResources\nCUDA error 35 driver insufficient")
        return index


def test_all_named_gpus_are_taken_and_no_other(monkeypatch, capsys):
    fake = FakeFaiss(4)
    monkeypatch.setitem(sys.modules, "faiss", fake)
    assert usable_gpus(()) == ()
    assert fake.asked == []
    assert usable_gpus((1, 3)) == (1, 3)
    assert fake.asked == [[1], [3]]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("fake", "words"),
    [
        (FakeFaiss(0), "FAISS sees 0 GPU(s) here, and has no GPU 0"),
        (FakeFaiss(2), "FAISS sees 2 GPU(s) here, and has no GPU 2"),
        (FakeFaiss(3, broken=[2]), "cannot compute there (CUDA error 35 driver insufficient)"),
    ],
)
def test_gpus_that_do_not_fit_give_one_line_and_the_cpu(fake, words, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", fake)
    assert usable_gpus((0, 2)) == ()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gpus [0, 2]: ")
    assert words in line
    assert "Clustering on the CPU" in line


def test_a_package_without_gpus_is_named(capsys):
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("FAISS is built for GPUs")
    assert usable_gpus((1,)) == ()
    assert "is built for CPUs; install faiss-gpu" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"gpus \[1\]: FAISS .* is built for CPUs"):
        flat_index(np.zeros((0, 4), np.float32), (1,))
