"""How much of the quality rank simple statistics of the pixels explain.

A gradient norm grows with the brightness and the contrast of an image. The number that is kept with
a coreset says how much of the rank a reader could have had from those alone.
"""

import numpy as np
import pyarrow as pa

from echostill.platform.tables.ids import pool_rows
from echostill.platform.tables.schemas import score_column

ISSUES = ("dark", "saturated", "blurred", "low_information")
STATISTICS = ("mean", "contrast", *map(score_column, ISSUES))


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank values from 0, equal ones by their mean rank, (N,) float64."""
    _, number, count = np.unique(values, return_inverse=True, return_counts=True)
    mean = np.cumsum(count) - (count + 1) / 2
    placed: np.ndarray = mean[number]
    return placed


def explained_by_pixels(quality: np.ndarray, statistics: np.ndarray) -> float | None:
    """Share of the variance of the quality rank that the ranks of some statistics explain.

    Args:
        quality: (N,) quality scores.
        statistics: (N, S) statistics of the pixels.

    Returns:
        R squared of a linear regression with intercept, adjusted for S, at least 0; None where the
        quality is constant or there are no more than S + 1 rows.
    """
    rows, count = statistics.shape
    if rows <= count + 1:
        return None
    target, left = _regressed(quality, statistics)
    total = float(target @ target)
    if total == 0:
        return None
    share = 1.0 - float(left @ left) / total * (rows - 1) / (rows - count - 1)
    return max(round(float(share), 3), 0.0)


def beyond_pixels(quality: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """What the ranks of some statistics leave of the quality rank.

    Args:
        quality: (N,) quality scores.
        statistics: (N, S) statistics of the pixels; NaN counts as the mean rank.

    Returns:
        (N,) float32, 1 plus the residuals of the regression of :func:`explained_by_pixels` divided
        by N, so positive: larger where brightness and contrast suggest a lower quality.
    """
    left = _regressed(quality, statistics)[1]
    # The last bits depend on the number of threads.
    kept: np.ndarray = np.round(1.0 + left / max(len(left), 1), 9).astype(np.float32)
    return kept


def _regressed(quality: np.ndarray, statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Regress ranks on ranks: the centred ranks of the quality, and the residuals, (N,) each."""
    target = ranks(quality)
    target -= target.mean()
    design = np.zeros(statistics.shape)
    for number, column in enumerate(statistics.T):
        known = np.isfinite(column)
        own = ranks(column[known])
        design[known, number] = own - own.mean() if len(own) else own
    # The normal equations: (S, S), whatever the number of rows.
    solved = np.linalg.lstsq(design.T @ design, design.T @ target, rcond=1e-10)[0]
    return target, target - design @ solved


def explained_in_pool(ids: pa.Array, quality: np.ndarray, pool: pa.Table) -> float | None:
    """:func:`explained_by_pixels` for the rows of a pool.

    Args:
        ids: N image ids.
        quality: (N,) quality scores.
        pool: image_id and, if an earlier version did not leave them out, ``STATISTICS``.

    Returns:
        The share, or None where it cannot be told.
    """
    if not set(STATISTICS) <= set(pool.column_names):
        return None
    statistics = statistics_of(pool, pa.array(pool_rows(ids, pool["image_id"])))
    usable = np.isfinite(statistics).all(axis=1)
    return explained_by_pixels(quality[usable], statistics[usable])


def statistics_of(pool: pa.Table, row: pa.Array) -> np.ndarray:
    """Return the statistics of some rows of a pool that has them, (N, S) float64."""
    columns = [pool[name].combine_chunks().take(row) for name in STATISTICS]
    return np.stack(
        [column.to_numpy(zero_copy_only=False).astype(np.float64) for column in columns], axis=1
    )
