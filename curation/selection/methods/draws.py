"""Methods that draw at random: over the pool, or inside clusters."""

from typing import TYPE_CHECKING

import numpy as np

from echostill.curation.selection.methods.block import Block

if TYPE_CHECKING:
    from echostill.curation.selection.settings import SelectionSettings


def random(block: Block, count: int, settings: "SelectionSettings") -> np.ndarray:
    """Order by a hash of seed and id, so that an image keeps its draw if the pool changes."""
    return block.draws
