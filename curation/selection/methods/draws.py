"""Methods that draw at random: over the pool, or inside clusters."""

import numpy as np

from echostill.curation.selection.methods.block import Block


def random(block: Block, count: int, settings: object) -> np.ndarray:
    """Order by a hash of seed and id, so that an image keeps its draw if the pool changes."""
    return block.draws
