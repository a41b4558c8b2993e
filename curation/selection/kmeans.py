"""k-means by FAISS, the one place that calls it: spherical, on every row it is given.

Four habits of FAISS are made explicit here: it trains on a silent sample of 256 rows per cluster
unless told otherwise, it warns when a cluster gets few rows, it holds the seed in 32 bits, and
``gpu=True`` takes every GPU there is.
"""

import math
from typing import Any

import numpy as np

from echostill.platform.errors import UsageError


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
    found = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    missing = [gpu for gpu in gpus if gpu >= found]
    if missing:
        raise UsageError(
            f"gpus {list(gpus)}: FAISS sees {found} GPU(s) here, and has no GPU {missing[0]}. "
            "Install faiss-gpu in place of faiss-cpu, or leave gpus empty."
        )
    # Never gpu=True: FAISS would take all of them.
    resources = [faiss.StandardGpuResources() for _ in gpus]
    options = faiss.GpuMultipleClonerOptions()
    options.shard = False
    return faiss.index_cpu_to_gpu_multiple_py(resources, index, options, list(gpus))
