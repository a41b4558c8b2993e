"""D2 pruning (Maharana et al. 2023): difficulty spreads through a graph, each pick discounts it."""

import heapq

import numpy as np

from echostill.curation.selection.methods.block import Block, in_order
from echostill.curation.selection.methods.similarity import HasGraph, nearest_neighbours

DECIMALS = 12  # scores of identical images are sums in different orders; rounded, they tie


def d2(block: Block, count: int, settings: HasGraph) -> np.ndarray:
    """Pick the largest score again and again, and discount the scores around each pick.

    With d_ij the distance of unit features and N(i) the nearest neighbours of i:
    s_i <- s_i + sum_{j in N(i)} exp(-d_ij) s_j once; then pick i = argmax s, and for its neighbours
    s_j <- s_j - exp(-gamma d_ij) s_i. The score to begin with is the gradient's; if any is negative
    (a large ``penalty``), all are shifted so that the smallest is 0.
    """
    total = len(block)
    near, cosine = nearest_neighbours(block.features, settings.graph.neighbours)
    distance = np.sqrt(np.maximum(2.0 - 2.0 * cosine, 0.0))
    start = block.quality.astype(np.float64)
    if total:
        start = start - min(float(start.min()), 0.0)
        start /= float(start.max()) or 1.0  # the order does not depend on the gradients' unit
    score = start + (np.exp(-distance) * start[near]).sum(axis=1)
    discount = np.exp(-settings.graph.gamma * distance)
    picks: list[int] = []
    free = np.ones(total, dtype=bool)

    def key(row: int) -> float:
        return -round(float(score[row]), DECIMALS)

    heap = [(key(row), row) for row in range(total)]
    heapq.heapify(heap)

    def choose(row: int) -> None:
        picks.append(row)
        free[row] = False
        score[near[row]] -= discount[row] * score[row]
        for other in near[row].tolist():
            if free[other]:
                heapq.heappush(heap, (key(other), other))

    for row in np.flatnonzero(block.pinned).tolist():
        choose(row)
    while len(picks) < count:
        value, row = heapq.heappop(heap)
        if free[row] and value == key(row):  # otherwise the entry is outdated
            choose(row)
    return in_order(picks, -np.round(score, DECIMALS))
