"""Black over text in the sector."""

from collections.abc import Sequence

import numpy as np

from echostill.curation.deidentification.brightness import Box
from echostill.curation.deidentification.text.found import Text

_MARGIN = 0.15  # around a text's box, in heights of a line: strokes reach beyond what was found
_LEAST_MARGIN, _LARGEST_MARGIN = 3, 12  # in pixels
_COMPACT = 0.5  # share of its box that the cells of a level or upright line fill, at least


def redact(pixels: np.ndarray, texts: Sequence[Text]) -> np.ndarray:
    """Blacken texts with a margin around them.

    Args:
        pixels: uint8 (H, W) or (H, W, 3).
        texts: In the same pixels.

    Returns:
        A new array.
    """
    out = pixels.copy()
    out[covered(texts, pixels.shape)] = 0
    return out


def covered(texts: Sequence[Text], shape: tuple[int, ...]) -> np.ndarray:
    """Return what redaction blackens, (H, W) bool.

    It is a text's box, or its cells where they fill little of it: a slanted line, or lines that
    something joins.
    """
    mask = np.zeros(shape[:2], dtype=bool)
    for text in texts:
        for box in _boxes(text):
            x0, y0, x1, y1 = widened(box, shape)
            mask[y0:y1, x0:x1] = True
    return mask


def _boxes(text: Text) -> Sequence[Box]:
    x0, y0, x1, y1 = text.box
    filled = sum((right - left) * (bottom - top) for left, top, right, bottom in text.cells)
    if not text.cells or filled >= _COMPACT * (x1 - x0) * (y1 - y0):
        return [text.box]
    return text.cells


def widened(box: Box, shape: tuple[int, ...]) -> Box:
    """Return a box with its margin, inside a frame of that shape."""
    x0, y0, x1, y1 = box
    line = min(y1 - y0, x1 - x0)  # of upright lines, too
    margin = int(min(max(_MARGIN * line, _LEAST_MARGIN), _LARGEST_MARGIN))
    height, width = shape[:2]
    return (
        max(x0 - margin, 0),
        max(y0 - margin, 0),
        min(x1 + margin, width),
        min(y1 + margin, height),
    )


def lost_share(texts: Sequence[Text], mask: np.ndarray) -> float:
    """Return which share of the pixels under a mask redaction blackens, 0..1."""
    kept = int(mask.sum())
    if not kept:
        return 0.0
    return int((covered(texts, mask.shape) & mask).sum()) / kept
