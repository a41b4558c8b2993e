"""k-center greedy (Sener and Savarese 2018): cover the pool with the smallest radius."""

import numpy as np

from echostill.curation.selection.methods.block import Block, in_order
from echostill.curation.selection.methods.similarity import Similarity


def k_center(block: Block, count: int, settings: object) -> np.ndarray:
    """Repeatedly pick the image that is farthest from those picked: argmax_u min_v d(u, v).

    Starts from the pinned images or, without any, from the image nearest to the block's mean. It
    picks outliers by design.
    """
    similarity = Similarity(block.features, count)
    nearest = np.full(len(block), -np.inf)  # similarity to the nearest picked image
    picks = np.flatnonzero(block.pinned).tolist()
    for pick in picks:
        similarity.raise_to(pick, nearest)
    if not picks and count:
        unit = similarity.unit
        picks = [int(np.argmax(np.round(unit @ unit.mean(axis=0), 9)))]
        nearest = similarity.row(picks[0]).copy()
    nearest[picks] = np.inf
    while len(picks) < count:
        pick = int(np.argmin(nearest))
        picks.append(pick)
        similarity.raise_to(pick, nearest)
        nearest[pick] = np.inf
    return in_order(picks, nearest)
