"""Changes to test images: speckle, gain, depth, shadow. One strength each, all [I].

They depend on the image's id alone, so that every model sees the same changed images.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from echostill.platform.seeding import stream

SPECKLE = 0.35  # standard deviation of the factor
GAIN = 1.6  # largest factor; the smallest is its inverse
DEPTH = 1.25  # the scan shows a quarter more depth, so that everything is smaller
SHADOW = 0.25  # width of the shadow, of the image's
DARKNESS = 0.15  # what is left of the brightness in a shadow


def corrupt(kind: str, pixels: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """Change images.

    Args:
        kind: ``speckle``, ``gain``, ``depth`` or ``shadow``.
        pixels: (N, 3, S, S) uint8.
        ids: The images' ids.

    Returns:
        (N, 3, S, S) uint8.
    """
    changed = [
        CHANGES[kind](image.astype(np.float64), stream(0, "corruption", kind, name))
        for image, name in zip(pixels, ids, strict=True)
    ]
    images: np.ndarray = np.clip(np.rint(np.array(changed)), 0, 255).astype(np.uint8)
    return images.reshape(pixels.shape)


def corrupt_masks(kind: str, masks: np.ndarray) -> np.ndarray:
    """Move masks (N, S, S) uint8 with the images; only ``depth`` moves anything."""
    if kind != "depth":
        return masks
    return np.array([_deeper(mask, Image.Resampling.NEAREST) for mask in masks], dtype=np.uint8)


def _speckle(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Multiply by grey noise that is the same in all channels: speckle is multiplicative."""
    factor: np.ndarray = 1 + SPECKLE * random.standard_normal(image.shape[1:])
    noisy: np.ndarray = image * np.maximum(factor, 0)
    return noisy


def _gain(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    changed: np.ndarray = image * GAIN ** (1 if random.random() < 0.5 else -1)
    return changed


def _depth(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.array([_deeper(plane, Image.Resampling.BILINEAR) for plane in image])


def _deeper(plane: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
    """Shrink a plane (S, S) towards the middle of its upper edge, where the probe is."""
    side = plane.shape[0]
    small = max(round(side / DEPTH), 1)
    source = Image.fromarray(plane.astype(np.uint8))
    canvas = np.zeros_like(plane)
    left = (side - small) // 2
    canvas[:small, left : left + small] = np.asarray(source.resize((small, small), resampling))
    return canvas


def _shadow(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Darken a strip from a random depth in the upper half down to the bottom."""
    side = image.shape[-1]
    width = max(round(SHADOW * side), 1)
    left = int(random.integers(0, side - width + 1))
    top = int(random.integers(0, side // 2 + 1))
    changed = image.copy()
    changed[:, top:, left : left + width] *= DARKNESS
    return changed


CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "speckle": _speckle,
    "gain": _gain,
    "depth": _depth,
    "shadow": _shadow,
}
