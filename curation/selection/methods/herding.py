"""Herding (Welling 2009; Rebuffi et al. 2017): keep the mean of the chosen close to the pool's."""

import numpy as np

from echostill.curation.selection.methods.block import Block, in_order
from echostill.curation.selection.methods.similarity import Similarity


def herding(block: Block, count: int, settings: object) -> np.ndarray:
    """Pick argmin_u ||(k + 1) mu - sum_S z - z_u|| for the k + 1st image; mu is the block's mean.

    All z have unit length, so the minimum is where z_u . ((k + 1) mu - sum_S z) is largest.
    (DeepCore's code takes the argmax of the norm, which moves away from the mean.)
    """
    similarity = Similarity(block.features)
    unit = similarity.unit
    to_mean = unit @ unit.mean(axis=0)
    to_chosen = np.zeros(len(block))
    free = np.ones(len(block), dtype=bool)
    picks = np.flatnonzero(block.pinned).tolist()
    for pick in picks:
        to_chosen += similarity.row(pick)
        free[pick] = False
    while len(picks) < count:
        gain = np.round((len(picks) + 1) * to_mean - to_chosen, 9)
        pick = int(np.argmax(np.where(free, gain, -np.inf)))
        picks.append(pick)
        to_chosen += similarity.row(pick)
        free[pick] = False
    return in_order(picks, -np.round((len(picks) + 1) * to_mean - to_chosen, 9))
