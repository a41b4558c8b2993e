"""Methods that draw at random: over the pool, or inside clusters."""

from typing import TYPE_CHECKING

import numpy as np

from echostill.curation.selection.methods.block import Block

if TYPE_CHECKING:
    from echostill.curation.selection.settings import SelectionSettings


def random(block: Block, count: int, settings: "SelectionSettings") -> np.ndarray:
    """By a hash of seed and id: an image keeps its draw when others join or leave the pool."""
    return block.draws
