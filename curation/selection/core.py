"""From scores to the coreset: ranks inside clusters, quotas, and an exact budget.

An image near its cluster's centroid is typical, one with a large proxy gradient is informative.
Both become ranks inside the cluster, their weighted sum is the dual rank, and each cluster gives
its best rows in proportion to its size. The abstract of TinyUSFM (arXiv 2510.19239) names
feature-gradient driven selection and its overview figure shows both ranks; the formulas are
inferred. Every other method goes the same way: an order of the rows, quotas, reasons.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.curation.selection import reasons
from echostill.curation.selection.allocation import Allocation, outcomes
from echostill.curation.selection.clustering import (
    Clustering,
    ClusteringSettings,
    cluster_pieces,
)
from echostill.curation.selection.features import (
    ArrayFeatures,
    ColumnFeatures,
    Features,
    inverse,
    load_rows,
)
from echostill.curation.selection.group_limit import (
    group_numbers,
)
from echostill.curation.selection.methods import METHODS, Pool
from echostill.curation.selection.quotas import largest_remainder_quotas
from echostill.curation.selection.ranking import dual_ranks, ranks_within_clusters
from echostill.curation.selection.request import Request, prepare_request, sorted_ids
from echostill.curation.selection.settings import SelectionSettings, check_limits, resolve_budget
from echostill.platform.config import validate
from echostill.platform.errors import UsageError
from echostill.platform.phases import phase
from echostill.platform.ray_tasks import TaskPool
from echostill.platform.tables.schemas import CORESET_SCHEMA

__all__ = [
    "Request",
    "SelectionSettings",
    "choose",
    "cluster_scores",
    "dual_ranks",
    "largest_remainder_quotas",
    "prepare_request",
    "ranks_within_clusters",
    "resolve_budget",
    "select_coreset",
    "select_rows",
    "sorted_ids",
]

REASONS_AT_ONCE = 1_000_000


def select_rows(
    features: np.ndarray | pa.ChunkedArray | Features,
    scores: pa.Table,
    groups: pa.Table,
    budget: int | float,
    *,
    excluded: pa.Table | None = None,
    pinned: pa.Table | None = None,
    **settings: Any,
) -> pa.Table:
    """Choose a coreset with any of the methods: the one interface to all of them.

    Args:
        features: (N, D), row by row those of ``scores``.
        scores: image_id, gradient_mean, gradient_std.
        groups: image_id and group_id of these images, the column that ``balance`` names, the
            flags of ``flags_last``, as far as there are any, and with ``rank_by="beyond-pixels"``
            the statistics of the pixels.
        budget: number of images to choose, or a fraction of them.
        excluded: image_id, reason: images that are never chosen.
        pinned: image_id, reason: images that are always chosen.
        **settings: keys of :class:`SelectionSettings`: ``method="k-center"``, ``blocked=True``,
            ``quota="square-root"``, ``seed=3``, ...

    Returns:
        As :func:`select_coreset`.

    Raises:
        UsageError: An unknown key or value, or an error of :func:`select_coreset`.
    """
    if isinstance(features, np.ndarray):
        features = ArrayFeatures(features)
    elif isinstance(features, pa.ChunkedArray):
        features = ColumnFeatures(features)
    chosen = validate(SelectionSettings, {"budget": budget, **settings})
    return select_coreset(
        scores, groups, chosen, features=features, excluded=excluded, pinned=pinned
    )


def cluster_scores(scores: pa.Table, settings: ClusteringSettings) -> Clustering:
    """Cluster the features of a scores table, rows in the order of their ids.

    Raises:
        UsageError: No rows, ids that occur twice, or features that cannot be clustered.
    """
    ids, order = sorted_ids(scores)
    return cluster_pieces(ColumnFeatures(scores["feature"]), ids, order, settings)


def select_coreset(
    scores: pa.Table,
    groups: pa.Table,
    settings: SelectionSettings,
    clustering: Clustering | None = None,
    *,
    features: Features | None = None,
    excluded: pa.Table | None = None,
    pinned: pa.Table | None = None,
    tasks: TaskPool | None = None,
    scratch: str | None = None,
) -> pa.Table:
    """Choose the coreset, and give the reason why each row was chosen or not.

    Args:
        scores: image_id, gradient_mean, gradient_std, and feature unless ``features`` are given;
            rows in any order.
        groups: image_id and group_id of (at least) these images: the pool; and the column that
            ``settings.balance`` names.
        settings: budget, method, weights, clusters, seed.
        clustering: of the same scores, if available (``cluster_scores``). Without features, methods
            that compare images cannot run.
        features: the features of ``scores``, row by row, if they are not one of its columns.
        excluded: image_id and reason of images that are never chosen. They keep cluster and ranks
            and do not count in the sizes from which quotas are computed.
        pinned: image_id and reason of images that are always chosen. They count towards the
            budget, their cluster's quota and their group's limit.
        tasks: who reads features and assigns; None for threads of this process.
        scratch: folder for features that do not fit in memory; None is the system's.

    Returns:
        One row per scored image, sorted by image_id, columns as in ``CORESET_SCHEMA``. ``gradient``
        is the quality score. Exactly the budget's number of rows is selected.

    Raises:
        UsageError: An invalid budget, scores without a pool row, values that are not finite, ids
            that occur twice, a clustering of other images, an image that is both pinned and
            excluded, or too many images for the method.
    """
    if features is None and "feature" in scores.column_names:
        features = ColumnFeatures(scores["feature"])
    if features is not None:
        check_limits(settings, scores.num_rows, features.dimension)
    request = prepare_request(scores, groups, settings, excluded, pinned)
    if clustering is None:
        if features is None:
            raise UsageError(
                "the scores have no column 'feature', and no features are given: give one of them."
            )
        clustering = cluster_pieces(features, request.ids, request.order, settings, tasks)
    return choose(request, settings, clustering, features=features, tasks=tasks, scratch=scratch)


def choose(
    request: Request,
    settings: SelectionSettings,
    clustering: Clustering,
    *,
    features: Features | None = None,
    tasks: TaskPool | None = None,
    scratch: str | None = None,
) -> pa.Table:
    """Choose from checked inputs and clusters; arguments are those of :func:`select_coreset`."""
    if not clustering.ids.equals(request.ids):
        raise UsageError(
            "the clustering is of other images than the scores: cluster these scores again."
        )
    decided, strata, budget = request.decided, request.strata, request.budget
    with phase("ranks"):
        pool = _ranked(request, clustering, settings)
    if METHODS[settings.method].compares:
        if features is None:
            raise UsageError(
                f"method '{settings.method}' compares images with each other: give the features."
            )
        with phase("features by row"):
            place = inverse(request.order)
            cluster = clustering.assignment
            pool = replace(
                pool, features=load_rows(features, place, cluster, tasks or TaskPool(), scratch)
            )
    with phase("choice"):
        allocation = Allocation.of(pool, clustering, strata, decided, settings, budget)
        outcome = outcomes(pool, allocation, request.group_ids, decided, settings, budget)
    with phase("reasons"):
        return _table(pool, allocation, request, outcome, settings)


def _ranked(request: Request, clustering: Clustering, settings: SelectionSettings) -> Pool:
    ids, quality = request.ids, request.quality
    cluster, size = clustering.assignment, clustering.sizes[clustering.assignment]
    place = np.arange(len(ids))  # rows are sorted by id, so positions break ties as ids do
    distance_rank = ranks_within_clusters(cluster, clustering.distance, place)
    gradient_rank = ranks_within_clusters(cluster, quality, place, descending=True)
    dual_rank = dual_ranks(
        distance_rank, gradient_rank, size, settings.alpha, settings.fusion, settings.gradient_keep
    )
    return Pool(
        ids=ids,
        cluster=cluster,
        size=size,
        distance=clustering.distance,
        quality=quality,
        distance_rank=distance_rank,
        gradient_rank=gradient_rank,
        dual_rank=dual_rank,
        pinned=request.decided.pinned,
        seed=settings.seed,
        group=group_numbers(request.group_ids),
        flagged=request.flagged,
        group_limit=request.max_per_group,
    )


def _table(
    pool: Pool,
    allocation: Allocation,
    request: Request,
    outcome: np.ndarray,
    settings: SelectionSettings,
) -> pa.Table:
    strata = request.strata
    rank = ranks_within_clusters(allocation.cell, allocation.priority, np.arange(len(pool.ids)))
    cell_size = np.bincount(allocation.cell)[allocation.cell]
    quota = allocation.quotas[allocation.cell]
    stratum = pa.DictionaryArray.from_arrays(
        pa.array(strata.number.astype(np.int32)), pa.array(strata.names, pa.string())
    ).cast(pa.string())
    pieces = []
    for start in range(0, len(outcome), REASONS_AT_ONCE):
        part = slice(start, start + REASONS_AT_ONCE)
        kinds = None
        if strata.column is not None:
            own = stratum.slice(start, REASONS_AT_ONCE)
            kinds = pc.binary_join_element_wise(f"{strata.column} '", own, "'", "")
        pieces.append(
            reasons.reasons(
                outcome[part],
                rank[part],
                pool.cluster[part],
                cell_size[part],
                quota[part],
                better=METHODS[settings.method].better,
                equal=METHODS[settings.method].equal,
                max_per_group=request.max_per_group,
                texts=request.decided.texts.slice(start, REASONS_AT_ONCE),
                kinds=kinds,
            )
        )
    columns = {
        "image_id": pool.ids,
        "group_id": request.group_ids,
        "cluster": pool.cluster,
        "cluster_size": pool.size,
        "distance": pool.distance,
        "distance_rank": pool.distance_rank,
        "gradient": pool.quality,
        "gradient_rank": pool.gradient_rank,
        "dual_rank": pool.dual_rank,
        "cluster_rank": rank,
        "quota": quota,
        "stratum": stratum,
        "selected": np.isin(outcome, reasons.SELECTED),
        "reason": pa.chunked_array(pieces, pa.string()),
    }
    arrays = [_column(columns[field.name]).cast(field.type) for field in CORESET_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=CORESET_SCHEMA)


def _column(values: Any) -> Any:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values)
