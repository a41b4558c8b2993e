"""Which images a training step sees: a pure function of (seed, samples seen).

The images are walked in a fresh permutation per epoch, each exactly once; or balanced over strata
(organs, as USFM samples), each stratum equally often and its images in turn; or by weights. A batch
may straddle two epochs. Nothing depends on the number of workers: a worker takes every ``size``-th
image of the global batch, so a run may stop, resume or change its workers anywhere without changing
the stream.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from echostill.platform.seeding import stream


@lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the order of ``count`` images in an epoch, int64 (count,)."""
    return stream(seed, "order", epoch).permutation(count)


@lru_cache(maxsize=4)
def balanced_epoch(seed: int, epoch: int, strata: bytes) -> np.ndarray:
    """Return an epoch in which every stratum has the same number of places (give or take one).

    Each stratum walks its own permutations on from epoch to epoch, so that its images come equally
    often.

    Args:
        seed: Seed of the order.
        epoch: The epoch.
        strata: The images' strata as int64 codes, in bytes.

    Returns:
        As many row numbers as there are images, int64.
    """
    codes = np.frombuffer(strata, dtype=np.int64)
    names = np.unique(codes)
    places = np.full(len(names), len(codes) // len(names))
    places[: len(codes) % len(names)] += 1
    chosen = []
    for name, count in zip(names, places, strict=True):
        members = np.flatnonzero(codes == name)
        positions = np.arange(epoch * count, (epoch + 1) * count)
        rounds, offsets = np.divmod(positions, len(members))
        for lap in np.unique(rounds):
            order = stream(seed, "stratum", int(name), int(lap)).permutation(len(members))
            chosen.append(members[order[offsets[rounds == lap]]])
    rows = np.concatenate(chosen)
    return rows[stream(seed, "order", epoch).permutation(len(rows))]


@lru_cache(maxsize=4)
def weighted_epoch(seed: int, epoch: int, weights: bytes) -> np.ndarray:
    """Return an epoch in which images have places in proportion to their weights.

    Systematic sampling of a shuffled list: of N places image i gets N w_i / sum(w), rounded down or
    up, and exactly that in expectation. A weight of 0 leaves an image out.

    Args:
        seed: Seed of the order.
        epoch: The epoch.
        weights: The images' weights as float64, in bytes.

    Returns:
        As many row numbers as there are images, int64.
    """
    weight = np.frombuffer(weights, dtype=np.float64)
    random = stream(seed, "weighted", epoch)
    order = random.permutation(len(weight))
    reached = np.cumsum(weight[order])
    points = (np.arange(len(weight)) + random.random()) * (reached[-1] / len(weight))
    # Rounding may put the last point on the end itself, and no image of weight 0 lies there.
    places = np.minimum(np.searchsorted(reached, points, side="right"), np.argmax(reached))
    rows: np.ndarray = order[places][stream(seed, "order", epoch).permutation(len(weight))]
    return rows


@dataclass(frozen=True)
class Draw:
    """Images drawn for a step: row numbers and the epoch each belongs to."""

    rows: np.ndarray  # (B,) int64
    epochs: np.ndarray  # (B,) int64


def draw(
    seed: int,
    count: int,
    samples_seen: int,
    batch_size: int,
    strata: np.ndarray | None = None,
) -> Draw:
    """Return the next ``batch_size`` images after ``samples_seen`` of them.

    Args:
        seed: Seed of the order.
        count: Number of images.
        samples_seen: Images drawn before this batch, over all workers.
        batch_size: Size of the global batch.
        strata: (count,) int64 codes to balance over; None walks all images alike.
    """
    positions = np.arange(samples_seen, samples_seen + batch_size)
    epochs, offsets = np.divmod(positions, count)
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        if strata is None:
            order = epoch_permutation(seed, int(epoch), count)
        else:
            order = balanced_epoch(seed, int(epoch), strata.tobytes())
        rows[chosen] = order[offsets[chosen]]
    return Draw(rows=rows, epochs=epochs)


def draw_weighted(seed: int, weights: np.ndarray, samples_seen: int, batch_size: int) -> Draw:
    """As :func:`draw`, each image as often as its weight asks.

    Args:
        seed: Seed of the order.
        weights: (count,) float64, at least 0 and not all 0.
        samples_seen: Images drawn before this batch, over all workers.
        batch_size: Size of the global batch.
    """
    epochs, offsets = np.divmod(np.arange(samples_seen, samples_seen + batch_size), len(weights))
    rows = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        order = weighted_epoch(seed, int(epoch), weights.astype(np.float64).tobytes())
        rows[chosen] = order[offsets[chosen]]
    return Draw(rows=rows, epochs=epochs)


def worker_share(whole: Draw, rank: int, size: int) -> Draw:
    """Return the part of a global batch that worker ``rank`` of ``size`` takes."""
    return Draw(rows=whole.rows[rank::size], epochs=whole.epochs[rank::size])
