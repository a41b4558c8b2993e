"""k-means by FAISS, the one place that calls it: spherical, on every row it is given.

Four habits of FAISS are made explicit here: it trains on a silent sample of 256 rows per cluster
unless told otherwise, it warns when a cluster gets few rows, it holds the seed in 32 bits, and
``gpu=True`` takes every GPU there is.
"""

import math
from typing import Any

import numpy as np

from echostill.platform.errors import UsageError
from echostill.platform.progress import console


def train_centroids(
    sample: np.ndarray,
    clusters: int,
    *,
    iterations: int,
    seed: int,
    redo: int = 1,
    gpus: tuple[int, ...] = (),
) -> np.ndarray:
    """Train centroids on all rows of a sample, by inner product.

    Args:
        sample: (m, D) of unit length, m at least ``clusters``; callers take the sample.
        clusters: Number of centroids.
        iterations: Of k-means.
        seed: Of the starting centroids.
        redo: Runs with other starts; the best one is kept.
        gpus: Ids of the GPUs to train on; none is the CPU.

    Returns:
        (clusters, D) float32 of unit length. Some may be the nearest of no row.

    Raises:
        UsageError: As of :func:`flat_index`.
    """
    import faiss

    rows = np.ascontiguousarray(sample, dtype=np.float32)
    parameters = faiss.ClusteringParameters()
    parameters.niter = iterations
    parameters.nredo = redo
    parameters.seed = seed % 2**31
    parameters.spherical = True
    parameters.min_points_per_centroid = 1
    # FAISS takes a sample of its own when rows > clusters * this: the bound is never met.
    parameters.max_points_per_centroid = math.ceil(len(rows) / clusters)
    kmeans = faiss.Clustering(rows.shape[1], clusters, parameters)
    kmeans.train(rows, flat_index(rows[:0], gpus))
    return faiss.vector_to_array(kmeans.centroids).reshape(clusters, rows.shape[1])


def usable_gpus(gpus: tuple[int, ...]) -> tuple[int, ...]:
    """Return the named GPUs where FAISS can compute on all of them; else none, and say why.

    A small search is tried on each: a package whose CUDA does not fit the driver, or that was not
    built for the GPU, may count it all the same.
    """
    if not gpus:
        return ()
    try:
        reason = _missing(gpus)
        if not reason:
            probe = np.eye(4, dtype=np.float32)
            for gpu in gpus:
                flat_index(probe, (gpu,)).search(probe, 1)
    except (RuntimeError, AssertionError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[-1]
        reason = (
            f"FAISS cannot compute there ({first[:200]}): its CUDA, the driver and the GPU differ"
        )
    if reason:
        console.print(
            f"gpus {list(gpus)}: {reason}. Clustering on the CPU, and recorded so (gpus=[]).",
            markup=False,
            soft_wrap=True,
        )
        return ()
    return gpus


def _missing(gpus: tuple[int, ...]) -> str:
    """Say why FAISS has not all of these GPUs; empty where it has."""
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        return (
            f"FAISS {faiss.__version__} is built for CPUs; install faiss-gpu in place of faiss-cpu"
        )
    found = faiss.get_num_gpus()
    missing = [gpu for gpu in gpus if gpu >= found]
    return f"FAISS sees {found} GPU(s) here, and has no GPU {missing[0]}" if missing else ""


def flat_index(vectors: np.ndarray, gpus: tuple[int, ...] = ()) -> Any:
    """Build a FAISS index of inner products.

    Args:
        vectors: (k, D) float32; may have no rows.
        gpus: ids of the GPUs that hold a copy each; none is the CPU.

    Raises:
        UsageError: GPUs are asked for, and FAISS was built without them or has fewer.
    """
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    if len(vectors):
        index.add(np.ascontiguousarray(vectors))
    if not gpus:
        return index
    if reason := _missing(gpus):
        raise UsageError(f"gpus {list(gpus)}: {reason}. Or leave gpus empty.")
    # Never gpu=True: FAISS would take all of them.
    resources = [faiss.StandardGpuResources() for _ in gpus]
    options = faiss.GpuMultipleClonerOptions()
    options.shard = False
    return faiss.index_cpu_to_gpu_multiple_py(resources, index, options, list(gpus))
