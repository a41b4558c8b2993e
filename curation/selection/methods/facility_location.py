"""Facility location on a graph of nearest neighbours: chosen images cover all others."""

import heapq

import numpy as np

from echostill.curation.selection.methods.block import Block, in_order
from echostill.curation.selection.methods.similarity import HasGraph, nearest_neighbours

DECIMALS = 9  # gains of identical images are sums in different orders; rounded, they tie


def facility_location(block: Block, count: int, settings: HasGraph) -> np.ndarray:
    """Maximise sum_i max_{j in S} s_ij, greedily and lazily (Minoux 1978).

    An image counts as covered by itself (s = 1) and by its nearest neighbours, at their cosine
    where that is positive; beyond the graph s is 0. A gain can only shrink as more is chosen, so
    old gains are bounds, and a row whose fresh gain still leads the heap is the greedy choice.
    """
    total = len(block)
    near, cosine = nearest_neighbours(block.features, settings.graph.neighbours)
    # Column j: the images that j covers, itself first, as (images, similarities).
    images = np.concatenate([np.arange(total), np.repeat(np.arange(total), near.shape[1])])
    facility = np.concatenate([np.arange(total), near.ravel()])
    value = np.concatenate([np.ones(total), np.maximum(cosine.ravel(), 0.0)])
    order = np.argsort(facility, kind="stable")
    images, value = images[order], value[order]
    edges = np.searchsorted(facility[order], np.arange(total + 1))
    covered = np.zeros(total)

    def gain(row: int) -> float:
        own = slice(edges[row], edges[row + 1])
        return round(float(np.maximum(value[own] - covered[images[own]], 0.0).sum()), DECIMALS)

    def choose(row: int) -> None:
        own = slice(edges[row], edges[row + 1])
        covered[images[own]] = np.maximum(covered[images[own]], value[own])

    picks = np.flatnonzero(block.pinned).tolist()
    for row in picks:
        choose(row)
    bounds = np.add.reduceat(value, edges[:-1]) if total else value
    held = set(picks)
    heap = [(-round(float(bounds[row]), DECIMALS), row) for row in range(total) if row not in held]
    heapq.heapify(heap)
    while len(picks) < count:
        _, row = heapq.heappop(heap)
        fresh = (-gain(row), row)
        if heap and fresh > heap[0]:
            heapq.heappush(heap, fresh)
            continue
        picks.append(row)
        choose(row)
    rest = np.zeros(total)
    for bound, row in heap:
        rest[row] = bound
    return in_order(picks, rest)
