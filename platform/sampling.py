"""Which images a training step sees: a pure function of (seed, samples seen).

The images are walked in a fresh permutation per epoch, each exactly once. A batch may straddle two
epochs. Nothing depends on the number of workers: a worker takes every ``size``-th image of the
global batch, so a run may stop, resume or change its workers anywhere without changing the stream.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from echostill.platform.seeding import stream


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of ``count`` images in an epoch, int64 (count,)."""
    return stream(seed, "order", epoch).permutation(count)


@dataclass(frozen=True)
class Draw:
    """Images drawn for a step: row numbers and the epoch each belongs to."""

    rows: np.ndarray  # (B,) int64
    epochs: np.ndarray  # (B,) int64


def draw(seed: int, count: int, samples_seen: int, batch_size: int) -> Draw:
    """Return the next ``batch_size`` images after ``samples_seen`` of them.

    Args:
        seed: Seed of the order.
        count: Number of images.
        samples_seen: Images drawn before this batch, over all workers.
        batch_size: Size of the global batch.
    """
    positions = np.arange(samples_seen, samples_seen + batch_size)
    epochs, offsets = np.divmod(positions, count)
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = epoch_permutation(seed, int(epoch), count)[offsets[chosen]]
    return Draw(rows=rows, epochs=epochs)


def worker_share(whole: Draw, rank: int, size: int) -> Draw:
    """Return the part of a global batch that worker ``rank`` of ``size`` takes."""
    return Draw(rows=whole.rows[rank::size], epochs=whole.epochs[rank::size])
