"""Search for close pairs among millions of hashes by bands: compares few pairs and misses none.

A hash of 256 bits is divided into 8 bands of 32. Two hashes that differ in at most 15 bits have a
band in which they differ in at most one bit (8 bands with two bits each would need 16). Every band
is therefore searched with each of its bits ignored in turn: 32 sorts per band, which cost N log N
each, whereas comparing all pairs costs N squared. Pairs that differ in more than 15 bits are found
only if they happen to share such a band; the caller's limit decides whether they count.
"""

from collections.abc import Iterator

import numpy as np

from echostill.curation.ingestion.perceptual import BANDS, BITS, hamming

BAND_BITS = BITS // BANDS
GUARANTEED = 2 * BANDS - 1  # every pair that differs in at most this many bits is found
BLOCK = 4_000_000  # pairs compared at once: bounds the memory to a few hundred megabytes


def close_pairs(
    hashes: np.ndarray, labels: np.ndarray, distance: int, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of rows whose hashes differ in few bits.

    Args:
        hashes: (N, 4) uint64, band after band; an all-zero hash matches no other.
        labels: (N,) integers. Rows with the same label are not compared with each other.
        distance: Largest number of bits that may differ.
        block: Pairs compared at once.

    Returns:
        Rows i and j, (P,) int64 each with i < j, sorted by (i, j), and the bits that differ, (P,)
        int16. Every pair within min(distance, 15) is there, and none beyond ``distance``.
    """
    rows = np.flatnonzero(hashes.any(axis=1))
    hashes, labels = np.ascontiguousarray(hashes[rows]), labels[rows]
    bands = hashes.view(np.uint32).reshape(len(rows), BANDS)
    found: list[np.ndarray] = []
    for band in range(BANDS):
        for first, second in _candidates(np.ascontiguousarray(bands[:, band]), block):
            apart = labels[first] != labels[second]
            first, second = first[apart], second[apart]
            near = hamming(hashes[first], hashes[second]) <= distance
            low = np.minimum(first[near], second[near])
            high = np.maximum(first[near], second[near])
            if len(low):
                found.append(np.unique(low * len(rows) + high))
    pairs = np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
    low, high = np.divmod(pairs, max(len(rows), 1))
    return rows[low], rows[high], hamming(hashes[low], hashes[high])


def _candidates(keys: np.ndarray, block: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of rows whose keys are equal or differ in one bit, each pair once.

    Args:
        keys: (N,) uint32.
        block: Pairs yielded at once, about.
    """
    row = np.arange(len(keys), dtype=np.uint64)
    for bit in range(BAND_BITS):
        # The bit comes last, followed by the row: after sorting, keys that are equal except for the
        # bit are adjacent, those with a 0 before those with a 1.
        turned = _rotated(keys, bit).astype(np.uint64)
        order = np.sort(turned << np.uint64(32) | row)
        rows = (order & np.uint64(0xFFFFFFFF)).astype(np.int64)
        turned = order >> np.uint64(32)
        whole, rest = _starts(turned), _starts(turned >> np.uint64(1))
        if bit == 0:  # equal keys: each row with the rows before it in its run
            yield from _expand(rows, whole, np.arange(len(rows)), block)
        # One differing bit: each row with a 1 with all rows of its run that have a 0.
        yield from _expand(rows, rest, np.where(turned & np.uint64(1), whole, rest), block)


def _rotated(keys: np.ndarray, bit: int) -> np.ndarray:
    """Rotate the bits of each key so that the given one comes last."""
    if bit == 0:
        return keys
    return keys >> np.uint32(bit) | keys << np.uint32(BAND_BITS - bit)


def _starts(values: np.ndarray) -> np.ndarray:
    """Return for each sorted value the index at which its run of equal values begins."""
    new = np.empty(len(values), dtype=bool)
    new[:1] = True
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return np.maximum.accumulate(np.where(new, np.arange(len(values)), 0))


def _expand(
    rows: np.ndarray, begin: np.ndarray, end: np.ndarray, block: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs of each index with the indices from ``begin`` to ``end`` (exclusive)."""
    count = end - begin
    indices = np.flatnonzero(count > 0)
    if not len(indices):
        return
    count = count[indices]
    total = np.cumsum(count)
    start = 0
    while start < len(indices):
        done = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, done + block, side="right")))
        some = count[start:stop]
        other = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
        other += np.repeat(begin[indices[start:stop]], some)
        yield rows[np.repeat(indices[start:stop], some)], rows[other]
        start = stop
