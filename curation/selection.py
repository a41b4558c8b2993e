"""From scores to the coreset: ranks inside clusters, quotas, and an exact budget.

An image near its cluster's centroid is typical, one with a large proxy gradient is informative.
Both become ranks inside the cluster, their weighted sum is the dual rank, and each cluster gives
its best rows in proportion to its size. The abstract of TinyUSFM (arXiv 2510.19239) names
feature-gradient driven selection and its overview figure shows both ranks; the formulas are
inferred.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from echostill.curation import reasons
from echostill.curation.clustering import (
    Clustering,
    ClusteringSettings,
    cluster_features,
    feature_matrix,
    first_ids,
)
from echostill.curation.group_limit import fill_within_group_limit
from echostill.platform.errors import UsageError, nearest
from echostill.platform.schemas import CORESET_SCHEMA


class SelectionSettings(ClusteringSettings):
    """How a coreset is chosen."""

    budget: int | float = Field(
        0.1, description="Images to choose: a whole number, or a share of the pool (0.1 is 10%)."
    )
    method: str = Field("dual-rank", description="How images are chosen: 'dual-rank' or 'random'.")
    alpha: float = Field(
        0.5, ge=0, le=1, description="Weight of the distance rank; the quality rank gets the rest."
    )
    penalty: float = Field(
        0.0, ge=0, description="Quality is the mean gradient minus penalty times its spread."
    )
    max_per_group: int | None = Field(
        None, ge=1, description="At most this many images of one patient, study or clip."
    )

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise UsageError(
                f"no selection method '{name}'; there are {', '.join(METHODS)}."
                f"{nearest(name, METHODS)}"
            )
        return name


def resolve_budget(budget: int | float, rows: int) -> int:
    """Turn a budget into a number of images; a share is rounded half up, to at least one image.

    Raises:
        UsageError: Below 1, above the pool's size, or a share outside (0, 1].
    """
    if isinstance(budget, float):
        if not 0 < budget <= 1:
            raise UsageError(
                f"budget {budget} is no share of the pool: expected above 0 and at most 1.0, or a "
                f"whole number of images from 1 to {rows} (the pool's size)."
            )
        # The decimal as it was written: 0.1 means a tenth, not the nearest binary fraction.
        return max(1, int(Fraction(repr(budget)) * rows + Fraction(1, 2)))
    if not 1 <= budget <= rows:
        raise UsageError(
            f"budget {budget} does not fit: the pool has {rows} images; expected 1 to {rows}."
        )
    return budget


def ranks_within_clusters(
    cluster: np.ndarray, value: np.ndarray, ids: np.ndarray, descending: bool = False
) -> np.ndarray:
    """Rank the rows of each cluster by a value; ties go by id.

    Args:
        cluster: (N,) integers.
        value: (N,) numbers, finite.
        ids: (N,) anything that sorts: image ids, or their positions in sorted order.
        descending: whether the largest value gets rank 1.

    Returns:
        (N,) int32, 1..size of the cluster.
    """
    order = np.lexsort((ids, -value if descending else value, cluster))
    in_order = cluster[order]
    starts = np.flatnonzero(np.r_[True, in_order[1:] != in_order[:-1]]) if len(order) else order
    lengths = np.diff(np.r_[starts, len(order)])
    ranks = np.empty(len(order), dtype=np.int32)
    ranks[order] = np.arange(len(order)) - np.repeat(starts, lengths) + 1
    return ranks


def dual_ranks(
    distance_rank: np.ndarray, gradient_rank: np.ndarray, size: np.ndarray, alpha: float
) -> np.ndarray:
    """Fuse both ranks: (alpha * distance rank + (1 - alpha) * gradient rank) / cluster size.

    The weighted sum is rounded to nine decimals before it is divided, so that rows whose sums are
    equal on paper are equal here too and their tie goes by id, not by the last bit.

    Returns:
        (N,) float64 in (0, 1], smaller is better.
    """
    weighted = alpha * distance_rank + (1 - alpha) * gradient_rank
    return np.round(weighted, 9) / size


def largest_remainder_quotas(sizes: np.ndarray, budget: int) -> np.ndarray:
    """Share a budget among clusters in proportion to their sizes, to the last place.

    Whole shares first; what is left goes to the largest remainders, ties to the smaller index
    (Hamilton's method). All in integers, so that no budget is missed by rounding. A cluster's quota
    never exceeds its size: a remainder above zero means the share is below the size.

    Args:
        sizes: (k,) members of each cluster.
        budget: 0..sum of sizes.

    Returns:
        (k,) int64 that sum to the budget.

    Raises:
        UsageError: The budget is negative or exceeds the sum of the sizes.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    total = int(sizes.sum())
    if not 0 <= budget <= total:
        raise UsageError(f"cannot share {budget} places among {total} images.")
    quotas, remainders = np.divmod(sizes * budget, max(total, 1))
    left = budget - int(quotas.sum())
    quotas[np.argsort(-remainders, kind="stable")[:left]] += 1
    return quotas


@dataclass(frozen=True)
class Candidates:
    """What a selection method sees: the scored rows in the order of their ids.

    Attributes:
        ids: image ids, sorted.
        cluster: (N,) int32.
        sizes: (k,) members of each cluster.
        dual_rank: (N,) float64.
    """

    ids: pa.Array
    cluster: np.ndarray
    sizes: np.ndarray
    dual_rank: np.ndarray


@dataclass(frozen=True)
class Method:
    """A way of choosing: an order inside the clusters, and how many each cluster gives.

    Attributes:
        priority: (N,) float64 of candidates and settings; smaller is taken first.
        quotas: (k,) integers of candidates, priority and budget; they sum to the budget.
        better: what fills a quota, in the reason of a row that found it filled.
        equal: the same where the rows tie.
    """

    priority: Callable[[Candidates, SelectionSettings], np.ndarray]
    quotas: Callable[[Candidates, np.ndarray, int], np.ndarray]
    better: str
    equal: str


def _by_dual_rank(candidates: Candidates, settings: SelectionSettings) -> np.ndarray:
    return candidates.dual_rank


def _by_draw(candidates: Candidates, settings: SelectionSettings) -> np.ndarray:
    # One hash per id, so that an image keeps its draw when others join or leave the pool.
    key = f"coreset {settings.seed}".encode()
    digests = b"".join(
        hashlib.blake2b(image_id.encode(), digest_size=8, key=key).digest()
        for image_id in candidates.ids.to_pylist()
    )
    return (np.frombuffer(digests, dtype="<u8") >> np.uint64(11)) / 2.0**53


def _proportional(candidates: Candidates, priority: np.ndarray, budget: int) -> np.ndarray:
    return largest_remainder_quotas(candidates.sizes, budget)


def _as_drawn(candidates: Candidates, priority: np.ndarray, budget: int) -> np.ndarray:
    """Quotas under which the clusters' best rows are the pool's best rows, as if none existed."""
    first = np.argsort(priority, kind="stable")[:budget]
    return np.bincount(candidates.cluster[first], minlength=len(candidates.sizes))


METHODS = {
    "dual-rank": Method(
        _by_dual_rank, _proportional, "better dual ranks", "equal dual ranks with smaller ids"
    ),
    "random": Method(
        _by_draw, _as_drawn, "earlier random draws", "equal random draws with smaller ids"
    ),
}


def cluster_scores(scores: pa.Table, settings: ClusteringSettings) -> Clustering:
    """Cluster the features of a scores table, rows in the order of their ids.

    Raises:
        UsageError: No rows, ids that occur twice, or features that cannot be clustered.
    """
    ids, order = _sorted_ids(scores)
    return cluster_features(feature_matrix(scores["feature"], order), ids, settings)


def select_coreset(
    scores: pa.Table,
    groups: pa.Table,
    settings: SelectionSettings,
    clustering: Clustering | None = None,
) -> pa.Table:
    """Choose the coreset and say of every row why it was chosen or not.

    Args:
        scores: image_id, feature, gradient_mean, gradient_std; rows in any order.
        groups: image_id and group_id of (at least) these images: the pool.
        settings: budget, method, weights, clusters, seed.
        clustering: of the same scores, where it is at hand (``cluster_scores``).

    Returns:
        One row per scored image, sorted by image_id, columns as in ``CORESET_SCHEMA``. ``gradient``
        is the quality score. Exactly the budget's number of rows is selected.

    Raises:
        UsageError: A budget that does not fit, scores without a pool row, values that are not
            finite, ids that occur twice, or a clustering of other images.
    """
    ids, order = _sorted_ids(scores)
    budget = resolve_budget(settings.budget, len(ids))
    group_ids = _groups_of(ids, groups)
    if clustering is None:
        clustering = cluster_features(feature_matrix(scores["feature"], order), ids, settings)
    elif not clustering.ids.equals(ids):
        raise UsageError("the clustering is of other images than the scores: cluster them again.")

    cluster, sizes = clustering.assignment, clustering.sizes
    size = sizes[cluster]
    place = np.arange(len(ids))  # rows are sorted by id, so positions break ties as ids do
    quality = _quality(scores, order, ids, settings.penalty)
    distance_rank = ranks_within_clusters(cluster, clustering.distance, place)
    gradient_rank = ranks_within_clusters(cluster, quality, place, descending=True)
    dual_rank = dual_ranks(distance_rank, gradient_rank, size, settings.alpha)

    method = METHODS[settings.method]
    candidates = Candidates(ids, cluster, sizes, dual_rank)
    priority = method.priority(candidates, settings)
    quotas = method.quotas(candidates, priority, budget)
    quota = quotas[cluster]
    cluster_rank = ranks_within_clusters(cluster, priority, place)
    if settings.max_per_group is None:
        outcome = np.where(cluster_rank <= quota, reasons.WITHIN_QUOTA, reasons.OUTRANKED)
    else:
        outcome = fill_within_group_limit(
            priority, cluster, quotas, group_ids, settings.max_per_group, budget
        )
    outcome = _told_apart(outcome, priority, cluster, quotas)
    columns = {
        "image_id": ids,
        "group_id": group_ids,
        "cluster": cluster,
        "cluster_size": size,
        "distance": clustering.distance,
        "distance_rank": distance_rank,
        "gradient": quality,
        "gradient_rank": gradient_rank,
        "dual_rank": dual_rank,
        "cluster_rank": cluster_rank,
        "quota": quota,
        "selected": outcome <= reasons.REFILLED,
        "reason": reasons.reasons(
            outcome,
            cluster_rank,
            cluster,
            size,
            quota,
            better=method.better,
            equal=method.equal,
            max_per_group=settings.max_per_group,
        ),
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in CORESET_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=CORESET_SCHEMA)


def _sorted_ids(scores: pa.Table) -> tuple[pa.Array, np.ndarray]:
    if scores.num_rows == 0:
        raise UsageError("the scores have no rows: nothing to select. Run `echostill score` first.")
    column = scores["image_id"].cast(pa.string()).combine_chunks()
    order = pc.sort_indices(column)
    ids = column.take(order)
    twice = np.flatnonzero(pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False))
    if len(twice):
        raise UsageError(
            f"{len(twice)} image ids occur twice in the scores: {first_ids(ids, twice)}."
        )
    return ids, order.to_numpy().astype(np.int64)


def _groups_of(ids: pa.Array, groups: pa.Table) -> pa.Array:
    known = groups["image_id"].cast(pa.string()).combine_chunks()
    row = pc.index_in(ids, value_set=known)
    if row.null_count:
        lost = np.flatnonzero(pc.is_null(row).to_numpy(zero_copy_only=False))
        raise UsageError(
            f"{len(lost)} scored images are not in the pool: {first_ids(ids, lost)}. The scores "
            "belong to another pool; run `echostill score` again."
        )
    return groups["group_id"].cast(pa.string()).combine_chunks().take(row)


def _quality(scores: pa.Table, order: np.ndarray, ids: pa.Array, penalty: float) -> np.ndarray:
    """Mean gradient minus penalty times its spread, (N,) float32 as the table holds it."""
    mean = scores["gradient_mean"].to_numpy().astype(np.float64)[order]
    spread = scores["gradient_std"].to_numpy().astype(np.float64)[order]
    broken = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(spread)))
    if len(broken):
        raise UsageError(
            f"{len(broken)} of {len(ids)} gradients are missing or not finite: "
            f"{first_ids(ids, broken)}. Score these images again or leave them out of the pool."
        )
    return (mean - penalty * spread).astype(np.float32)


def _told_apart(
    outcome: np.ndarray, priority: np.ndarray, cluster: np.ndarray, quotas: np.ndarray
) -> np.ndarray:
    """Split the outranked rows: ties with the last one taken, clusters without places, the rest."""
    taken = outcome == reasons.WITHIN_QUOTA
    last = np.full(len(quotas), -np.inf)
    np.maximum.at(last, cluster[taken], priority[taken])
    outranked = outcome == reasons.OUTRANKED
    outcome = np.where(outranked & (priority == last[cluster]), reasons.TIED, outcome)
    return np.where(outranked & (quotas[cluster] == 0), reasons.NO_QUOTA, outcome)
