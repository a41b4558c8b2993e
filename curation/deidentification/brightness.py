"""The brightness of a picture, with what several columns need of it made once."""

import math
from functools import cached_property

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive
_LEVELS = np.arange(256)


class Brightness:
    """How bright a picture's pixels are, on the 256 levels of its bytes.

    Attributes:
        levels: uint8 (H, W) (ITU-R 601-2 weights, as in Pillow).
        image: The same for Pillow.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        """Look at a picture, uint8 (H, W) or (H, W, 3)."""
        pixels = np.ascontiguousarray(pixels)
        image = Image.fromarray(pixels)
        self.image = image if pixels.ndim == 2 else image.convert("L")
        self.levels = pixels if pixels.ndim == 2 else np.asarray(self.image)

    def inside(self, box: Box) -> "Brightness":
        """Return the brightness of a part; of the whole, itself."""
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
        # Python's own numbers are exact, and 0 where the picture is flat.
        count, total = self.levels.size, int(self.histogram @ _LEVELS)
        return (count * int(self.histogram @ _LEVELS**2) - total**2) / count**2

    @property
    def contrast(self) -> float:
        """Standard deviation of the levels."""
        return math.sqrt(self.variance)
