"""The brightness of an image; quantities that several columns need are computed once."""

import math
from functools import cached_property

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive
_LEVELS = np.arange(256)


class Brightness:
    """Brightness of an image's pixels, in 256 levels.

    Attributes:
        levels: uint8 (H, W) (ITU-R 601-2 weights, as in Pillow).
        image: The same as a Pillow image.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        """Compute the brightness of an image, uint8 (H, W) or (H, W, 3)."""
        pixels = np.ascontiguousarray(pixels)
        image = Image.fromarray(pixels)
        self.image = image if pixels.ndim == 2 else image.convert("L")
        self.levels = pixels if pixels.ndim == 2 else np.asarray(self.image)

    def inside(self, box: Box) -> "Brightness":
        """Return the brightness inside a box; for the whole image, this object."""
        left, top, right, bottom = box
        part = self.levels[top:bottom, left:right]
        return self if part.shape == self.levels.shape else Brightness(part)

    @cached_property
    def histogram(self) -> np.ndarray:
        """Number of pixels of each level, (256,) int64."""
        return np.array(self.image.histogram(), dtype=np.int64)

    @cached_property
    def mean(self) -> float:
        """Mean level, 0..255."""
        return int(self.histogram @ _LEVELS) / self.levels.size

    @cached_property
    def variance(self) -> float:
        """Variance of the levels."""
        # Python's integers are exact, so a flat image has a variance of 0.
        count, total = self.levels.size, int(self.histogram @ _LEVELS)
        return (count * int(self.histogram @ _LEVELS**2) - total**2) / count**2

    @property
    def contrast(self) -> float:
        """Standard deviation of the levels."""
        return math.sqrt(self.variance)


def brightest(frame: np.ndarray) -> np.ndarray:
    """Return each pixel's largest channel, (H, W): coloured text is as bright as white."""
    if frame.ndim == 2:
        return frame
    largest: np.ndarray = np.maximum(np.maximum(frame[..., 0], frame[..., 1]), frame[..., 2])
    return largest
