"""Randomness as a pure function of what it is for.

Every random choice is drawn from a stream named by (seed, epoch, image, view, ...), never from a
worker's own generator: a view can be replayed, and the result does not depend on how many workers
there are or which of them was restarted.
"""

import hashlib
from collections.abc import Sequence

import numpy as np


def _digest(seed: int, keys: Sequence[int | str]) -> bytes:
    text = "\x1f".join([str(seed), *(f"{type(key).__name__}:{key}" for key in keys)])
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


def stream(seed: int, *keys: int | str) -> np.random.Generator:
    """Return a generator that depends on the seed and the keys alone."""
    words = np.frombuffer(_digest(seed, keys), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words[:2], counter=[0, 0, *words[2:]]))


def unit_uniforms(
    seed: int, epoch: int, image_ids: Sequence[str], view: str, count: int
) -> np.ndarray:
    """Draw ``count`` numbers in [0, 1) for each image, whatever batch the image sits in.

    Returns:
        Array (len(image_ids), count), float64.
    """
    out = np.empty((len(image_ids), count), dtype=np.float64)
    for row, image_id in enumerate(image_ids):
        out[row] = stream(seed, epoch, image_id, view).random(count)
    return out
