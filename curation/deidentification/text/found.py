"""What may be a text in a frame."""

from dataclasses import dataclass, field

import numpy as np

from echostill.curation.deidentification.brightness import Box

_READABLE = 3  # cells of a text that are needed to read anything of it
_TOUCHES = 0.05  # share of a box inside the sector from which its text counts


@dataclass(frozen=True)
class Text:
    """What may be a text.

    Attributes:
        box: In pixels, half-open.
        score: 0..1.
        cells: Boxes of the parts that look like text; default the whole box.
    """

    box: Box
    score: float
    cells: tuple[Box, ...] = field(default=(), repr=False)

    def lies_in(self, mask: np.ndarray) -> bool:
        """Return whether something of it that could be read lies under a mask (H, W) bool."""
        if not self.cells:
            x0, y0, x1, y1 = self.box
            part = mask[y0:y1, x0:x1]
            return bool(part.size and part.mean() > _TOUCHES)
        # Only whole cells count: where the mask cuts through one, its text may lie outside.
        parts = (mask[y0:y1, x0:x1] for x0, y0, x1, y1 in self.cells)
        inside = sum(bool(part.size and part.all()) for part in parts)
        return inside >= min(_READABLE, len(self.cells))
