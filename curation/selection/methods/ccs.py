"""Coverage-centric coreset selection (CCS, Zheng et al. 2023): covers every difficulty."""

from typing import Protocol

import numpy as np
from pydantic import Field

from echostill.curation.selection.methods.block import Block
from echostill.curation.selection.quotas import share
from echostill.platform.config import Config


class CcsSettings(Config):
    """How ccs divides the range of difficulty."""

    drop: float = Field(
        0.1, ge=0, lt=1, description="Share of the hardest images that is dropped (beta)."
    )
    strata: int = Field(50, ge=1, description="Strata of equal width in the range of difficulty.")


class HasCcs(Protocol):
    """Settings that have the keys of this method."""

    @property
    def ccs(self) -> CcsSettings:
        """The keys."""
        ...


def ccs(block: Block, count: int, settings: HasCcs) -> np.ndarray:
    """Drop the hardest, divide the range of the score evenly, draw equally from each stratum.

    Difficulty is the gradient score. Strata that are smaller than an equal share contribute all
    their images, and the rest is divided among the others (water-filling). Fewer images are dropped
    if the budget needs them.
    """
    total = len(block)
    score = block.quality.astype(np.float64)
    hardest = np.argsort(-score, kind="stable")
    dropped = min(int(settings.ccs.drop * total), total - count)
    kept = np.ones(total, dtype=bool)
    kept[hardest[:dropped]] = False
    low, high = (score[kept].min(), score[kept].max()) if kept.any() else (0.0, 0.0)
    strata = settings.ccs.strata
    width = (high - low) / strata
    stratum = np.zeros(total, dtype=np.int64)
    if width > 0:
        stratum = np.clip(((score - low) / width).astype(np.int64), 0, strata - 1)
    pinned = block.pinned
    counted = kept | pinned
    sizes = np.bincount(stratum[counted], minlength=strata)
    held = np.bincount(stratum[pinned], minlength=strata)
    quotas = share(sizes, count, "water-filling", held)
    draws = np.where(pinned, -1.0, block.draws)
    order = np.lexsort((draws, ~counted, stratum))
    counts = np.bincount(stratum, minlength=strata)
    starts = np.cumsum(counts) - counts
    place = np.empty(total, dtype=np.int64)
    place[order] = np.arange(total) - np.repeat(starts, counts)
    taken = counted & (place < quotas[stratum])
    # Then the remaining images, and finally the dropped ones, the least hard first.
    priority = np.where(taken, draws, 1.0 + draws)
    priority[hardest[:dropped]] = 3.0 + np.arange(dropped, 0, -1) / max(dropped, 1)
    return priority
