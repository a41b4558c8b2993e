"""Coverage: images that stand for many others not yet covered, the better ones first.

The value of an image is what it adds to the sum, over all images i, of max_{j chosen} s_ij, times
its quality: facility location (Mirzasoleiman et al. 2013), each candidate weighted. s is the cosine
of features minus the pool's mean, where positive. A first choice is therefore typical of its
surroundings; a neighbouring frame or a copy of a chosen image adds next to nothing and counts once,
however often it occurs; and among images that cover equally well the larger gradient decides.

All pairs of a large pool would be too many, so only images of one cell cover each other: the whole
block up to ``WHOLE`` images, otherwise its clusters, cut into runs of at most ``CELL``. As
the sum then falls apart into the cells, the greedy choice of each cell can be made by itself, and
the choices of all cells merge by value. The budget goes where there is most left to cover.

All values are whole numbers: features are rounded to a grid on which single precision adds
products exactly (any order of summation, any number of threads), and cosines to multiples of 2^-12,
whose sums over a cell are exact too. Identical images tie, and ties are broken by id.
"""

import math
from typing import Protocol

import numpy as np

from echostill.curation.selection.methods.block import Block
from echostill.platform.ray_tasks import TaskPool

WHOLE = 4096  # up to this many images are one cell; 2^12 of 2^12 each add up to 2^24, exact
CELL = 512
MARGIN = 4  # a cell's choices stop at this many times its share of the budget ...
LEAST = 16  # ... but at this many at the earliest
STEPS = 4096  # of a cosine, and the length of a feature on its grid
QUALITY_STEPS = 1024
LATER = 2.0**52  # beyond every value


class HasAlpha(Protocol):
    """Settings that weigh coverage against quality."""

    @property
    def alpha(self) -> float:
        """The weight of coverage."""
        ...


def operations(rows: int, dimension: int, count: int) -> float:
    """Floating-point operations: each row with those of its cell."""
    return 2.0 * rows * (rows if rows <= WHOLE else CELL) * dimension


def coverage(block: Block, count: int, settings: HasAlpha) -> np.ndarray:
    """Order by the value that an image adds, the choices of all cells merged; flagged rows last.

    A blank or blurred image covers none and needs none to cover it. If other images do not suffice,
    the flagged follow by the value that they have among themselves; else their dual ranks do.
    """
    flagged = block.flagged & ~block.pinned
    first, last = np.flatnonzero(~flagged), np.flatnonzero(flagged)
    after = block.dual_rank
    if len(last) and count > len(first):
        value = _by_value(Block(block.pool, block.rows[last]), count - len(first), settings)
        after[last[np.argsort(value, kind="stable")]] = np.arange(len(last)) / len(last)
    priority = 4.0 * LATER * (1.0 + after)
    if len(first):
        priority[first] = _by_value(Block(block.pool, block.rows[first]), count, settings)
    return priority


def _by_value(block: Block, count: int, settings: HasAlpha) -> np.ndarray:
    """Order unflagged rows.

    The quality of an image whose gradient is the g-th largest of n in its cluster is
    alpha + (1 - alpha) (1 - (g - 1) / n). Rows that no cell came to choose are last.
    """
    good = 1.0 - (block.gradient_rank.astype(np.float64) - 1.0) / block.size
    quality = np.rint((settings.alpha + (1.0 - settings.alpha) * good) * QUALITY_STEPS)
    quality = np.maximum(quality, 1.0)
    pinned, group, limit = block.pinned, block.group, block.pool.group_limit
    mean = block.pool.all_features.mean
    priority = np.empty(len(block))

    def order(rows: np.ndarray) -> np.ndarray:
        grid = on_grid(Block(block.pool, block.rows[rows]).features, mean)
        found = np.empty(len(rows))
        for cell in cells(grid, WHOLE if len(rows) == len(block) else CELL):
            share = math.ceil(MARGIN * count * len(cell) / len(block))
            most = count if len(cell) == len(block) else max(share, LEAST)
            found[cell] = greedy_cover(
                cosines(grid[cell]),
                quality[rows[cell]],
                most,
                pinned=pinned[rows[cell]],
                group=group[rows[cell]],
                limit=limit,
            )
        return found

    parts = _parts(block)
    for number, found in TaskPool().map(order, parts):
        priority[parts[number]] = found
    return priority


def greedy_cover(
    similarity: np.ndarray,
    quality: np.ndarray,
    count: int,
    *,
    pinned: np.ndarray,
    group: np.ndarray,
    limit: int | None = None,
) -> np.ndarray:
    """Choose the largest (1 + gain) x quality again and again, of rows whose group is not full.

    Args:
        similarity: (n, n) float32, symmetric, whole numbers from 0 to ``STEPS``; n at most
            ``WHOLE``.
        quality: (n,) float64, whole numbers from 1 to ``QUALITY_STEPS``.
        count: how many to choose; fewer where all groups are full before.
        pinned: (n,) bool, chosen first, beyond the limit if need be.
        group: (n,) integers.
        limit: rows that one group may have; None for any number.

    Returns:
        (n,) float64 priorities, smaller first: minus the value for the chosen; ``LATER`` minus the
        value for the others, and twice ``LATER`` where their group is full.
    """
    total = len(similarity)
    covered = np.zeros(total, dtype=np.float32)
    gain = similarity.sum(axis=0, dtype=np.float32)
    open_rows = np.ones(total, dtype=bool)
    chosen = np.zeros(total, dtype=bool)
    taken: dict[int, int] = {}
    priority = np.empty(total)

    def choose(row: int, value: float) -> None:
        nonlocal gain, covered
        priority[row] = -value
        chosen[row], open_rows[row] = True, False
        own = int(group[row])
        taken[own] = taken.get(own, 0) + 1
        if limit is not None and taken[own] >= limit:
            open_rows[group == own] = False
        more = np.flatnonzero(similarity[row] > covered)
        better = np.maximum(covered, similarity[row])
        rows = similarity[more]
        # What i still gained from each candidate, less what it gains now.
        lost = np.maximum(rows, covered[more, None])
        lost -= np.maximum(rows, better[more, None], out=rows)
        lost += (better - covered)[more, None]
        gain = gain - lost.sum(axis=0, dtype=np.float32)
        covered = better

    for row in np.flatnonzero(pinned).tolist():
        choose(row, LATER)
    for _ in range(count - int(pinned.sum())):
        value = np.where(open_rows, (gain.astype(np.float64) + 1.0) * quality, -1.0)
        row = int(value.argmax())
        if value[row] < 0:
            break
        choose(row, float(value[row]))
    value = (gain.astype(np.float64) + 1.0) * quality
    full = ~open_rows & ~chosen
    return np.where(chosen, priority, np.where(full, 2.0, 1.0) * LATER - value)


def on_grid(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Centre features, scale them to one length and round them to whole numbers.

    The length is such that no sum of products exceeds 2^24, whatever its order: single precision
    adds such products exactly.

    Args:
        features: (n, D) of any float type.
        mean: (D,) float64.

    Returns:
        (n, D) float32; a row equal to the mean is zero and covers none but itself.
    """
    moved = features.astype(np.float32)
    moved -= mean.astype(np.float32)
    length = np.sqrt(np.einsum("ij,ij->i", moved, moved))[:, None]
    scale = STEPS - 2 - math.ceil(math.sqrt(features.shape[1]) / 2)
    moved *= np.divide(np.float32(scale), length, out=np.zeros_like(length), where=length > 0)
    return np.rint(moved, out=moved)


def cosines(grid: np.ndarray) -> np.ndarray:
    """Return cosines, 0 where negative, in steps of 1 / ``STEPS``: (n, n) float32, (i, i) whole."""
    found: np.ndarray = grid @ grid.T
    np.maximum(found, 0.0, out=found)
    found *= np.float32(1.0 / STEPS)
    np.rint(found, out=found)
    np.fill_diagonal(found, STEPS)
    return found


def cells(grid: np.ndarray, most: int) -> list[np.ndarray]:
    """Divide rows into equal runs along the line between two that are far apart.

    Args:
        grid: (n, D) from :func:`on_grid`.
        most: Rows of a cell.

    Returns:
        The rows of each cell, ascending; rows that are alike lie in one run, or at its ends.
    """
    count = -(-len(grid) // most)
    if count == 1:
        return [np.arange(len(grid))]
    one = int((grid @ grid[0]).argmin())
    to_one = grid @ grid[one]
    other = int(to_one.argmin())
    along = np.argsort(grid @ grid[other] - to_one, kind="stable")
    return [np.sort(run) for run in np.array_split(along, count)]


def _parts(block: Block) -> list[np.ndarray]:
    """Return the rows that may cover each other: all of a small block, else each cluster."""
    if len(block) <= WHOLE:
        return [np.arange(len(block))]
    cluster = block.cluster
    order = np.argsort(cluster, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)
