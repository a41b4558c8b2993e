"""The search by bands against comparing all pairs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.copies.banding import GUARANTEED, close_pairs
from echostill.curation.ingestion.perceptual import hamming


def planted(seed, rows, copies, flips):
    """Random hashes and copies of them in which some bits were flipped."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**63, (rows, 4), dtype=np.uint64)
    more = hashes[rng.integers(0, rows, copies)].copy()
    for row in range(copies):
        for bit in rng.choice(256, rng.integers(0, flips + 1), replace=False):
            more[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return rng.permutation(np.concatenate([hashes, more, np.zeros((3, 4), np.uint64)]))


def all_pairs(hashes, labels, distance):
    """Every pair within a distance, by brute force."""
    bits = np.stack([hamming(row, hashes) for row in hashes])
    lit = hashes.any(axis=1)
    allowed = (labels[:, None] != labels[None]) & lit[:, None] & lit[None]
    return {
        (int(i), int(j)) for i, j in np.argwhere(np.triu((bits <= distance) & allowed, 1))
    }, bits


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(1, 30), st.integers(1, 500))
def test_every_pair_within_the_promise_is_found(seed, distance, labels, block):
    hashes = planted(seed, 40, 80, 24)
    label = np.random.default_rng(seed).integers(0, labels + 1, len(hashes))
    first, second, bits = close_pairs(hashes, label, distance, block)
    found = list(zip(first.tolist(), second.tolist(), strict=True))
    promised, every = all_pairs(hashes, label, min(distance, GUARANTEED))
    possible, _ = all_pairs(hashes, label, distance)
    assert promised <= set(found) <= possible
    assert found == sorted(set(found))
    assert (every[first, second] == bits).all()


def test_the_promise_is_kept_at_its_edge():
    """Fifteen bits, spread over the bands as badly as can be: two in each but one."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        hashes = rng.integers(0, 2**63, (2, 4), dtype=np.uint64)
        hashes[1] = hashes[0]
        single = rng.integers(8)
        for band in range(8):
            for bit in rng.choice(32, 1 if band == single else 2, replace=False):
                place = band * 32 + int(bit)
                hashes[1, place // 64] ^= np.uint64(1) << np.uint64(place % 64)
        assert close_pairs(hashes, np.arange(2), 15)[2].tolist() == [15]


def test_nothing_to_compare():
    for rows in (0, 1):
        first, second, bits = close_pairs(np.ones((rows, 4), np.uint64), np.arange(rows), 24)
        assert len(first) == len(second) == len(bits) == 0
    assert len(close_pairs(np.zeros((5, 4), np.uint64), np.arange(5), 24)[0]) == 0
    assert len(close_pairs(np.ones((5, 4), np.uint64), np.zeros(5, int), 24)[0]) == 0
    assert len(close_pairs(np.ones((5, 4), np.uint64), np.arange(5), 24)[0]) == 10
