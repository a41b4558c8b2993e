"""Perceptual hashes: steady under what a copy goes through, and far apart for other pictures."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageEnhance
from scipy import fft

from echostill.curation.copies.banding import GUARANTEED
from echostill.curation.deidentification.brightness import Brightness
from echostill.curation.ingestion import perceptual
from echostill.curation.ingestion.perceptual import (
    as_hashes,
    as_thumbnails,
    hamming,
    hash_squares,
    perceptual_columns,
    sector_box,
    thumbnail_correlation,
)
from echostill.platform.imaging.images import decode_image, resize_longest

POOL = Path(__file__).resolve().parents[3] / "examples/quickstart/pool"
FILES = [
    path
    for organ in ("fetal_head", "liver", "lung", "muscle")
    for path in sorted((POOL / organ).glob("*.jpg"))[::20]
]


def columns(pixels):
    """Hashes (2, 4) and thumbnails (2, 256) of a picture, as the pool's columns hold them."""
    found = perceptual_columns(Brightness(resize_longest(pixels, 256)))
    hashes = as_hashes(pa.chunked_array([pa.array([found["perceptual_hash"]], pa.binary(64))]))
    small = as_thumbnails(pa.chunked_array([pa.array([found["thumbnail"]], pa.binary(512))]))
    return hashes[0], small[0]


def saved_again(pixels, scale, quality, brightness, contrast):
    image = Image.fromarray(pixels)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.BILINEAR)
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return decode_image(sink.getvalue())


def test_copies_keep_their_hashes():
    """Resized, encoded again, brighter: within the distance at which every pair is found."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(400):
        pixels = decode_image(FILES[number % len(FILES)].read_bytes())
        first, small = columns(pixels)
        brightness, contrast = rng.uniform(0.9, 1.1, 2)
        copy = saved_again(
            pixels, rng.uniform(0.5, 2), int(rng.integers(60, 96)), brightness, contrast
        )
        second, other = columns(copy)
        close = hamming(first, second) <= GUARANTEED
        found.append((close & (thumbnail_correlation(small, other) >= 0.97)).any())
    assert np.mean(found) >= 0.99


def test_the_sectors_hash_outlives_other_borders():
    distances = []
    for file in FILES:
        pixels = decode_image(file.read_bytes())
        left, top, right, bottom = sector_box(Brightness(pixels).levels)
        sector = pixels[top:bottom, left:right]
        edges = [(30, 50), (70, 10)] + [(0, 0)] * (pixels.ndim - 2)
        distances.append(hamming(columns(sector)[0], columns(np.pad(sector, edges))[0]))
    picture, sector = np.transpose(distances)
    assert picture.min() > 64
    assert np.median(sector) <= 24


def test_other_pictures_are_far():
    found = np.array([columns(decode_image(path.read_bytes()))[0] for path in FILES])
    for view in range(2):
        distance = hamming(found[:, None, view], found[None, :, view])
        other = distance[~np.eye(len(found), dtype=bool)]
        assert 115 <= np.median(other) <= 135
        assert other.min() > 32


def test_the_bits_are_signs_of_the_256_lowest_frequencies():
    rng = np.random.default_rng(0)
    square = rng.normal(100, 30, (32, 32))
    place = np.arange(32)
    basis = np.cos(np.pi * (2 * place[None] + 1) * place[:, None] / 64)
    transform = basis @ square @ basis.T
    lowest = sorted(
        ((u, v) for u in range(32) for v in range(32)),
        key=lambda at: (at[0] + at[1], max(at), at[0]),
    )[1:257]
    packed = hash_squares(square[None])[0].view(np.uint8)
    bits = np.unpackbits(packed, bitorder="little").reshape(8, 32)
    # The k-th lowest frequency is bit k // 8 of band k % 8.
    for number, (u, v) in enumerate(lowest):
        assert bits[number % 8, number // 8] == (transform[u, v] > 0)


def test_hashes_are_those_of_the_library_transform():
    """Also on symmetric pictures, of whose frequencies half are nothing but rounding."""
    squares = [
        np.asarray(
            Image.fromarray(Brightness(decode_image(path.read_bytes())).levels).resize((32, 32))
        )
        for path in FILES
    ]
    squares += [np.maximum(square, square[:, ::-1]) for square in squares]
    squares += [np.tile(np.arange(32, dtype=np.uint8), (32, 1)), np.full((32, 32), 9, np.uint8)]
    transform = fft.dctn(np.array(squares, dtype=np.float64), axes=(1, 2), norm="ortho")
    bits = transform.reshape(len(squares), -1)[:, perceptual._POSITIONS] > perceptual.ZERO
    bits[-1] = False  # flat
    expected = np.packbits(np.ascontiguousarray(bits), axis=1, bitorder="little")
    np.testing.assert_array_equal(hash_squares(np.array(squares)), expected.view(np.uint64))


def test_a_flat_picture_has_no_hash():
    for level in (0, 7, 255):
        assert not columns(np.full((200, 300), level, dtype=np.uint8))[0].any()
    rows = pa.chunked_array([pa.array([None, b"x" * 64, None], pa.binary(64))])
    assert as_hashes(rows.slice(1)).any(axis=(1, 2)).tolist() == [True, False]
    assert as_hashes(pa.chunked_array([], pa.binary(64))).shape == (0, 2, 4)


def test_hamming_counts_bits():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 2**63, (2, 50, 4), dtype=np.uint64)
    expected = [
        sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(x, y, strict=True))
        for x, y in zip(first, second, strict=True)
    ]
    assert hamming(first, second).tolist() == expected


def test_correlation_is_pearsons_where_either_is_lit():
    rng = np.random.default_rng(2)
    first = rng.integers(13, 256, (20, 256)).astype(np.uint8)
    second = (first * 0.5 + rng.integers(13, 100, (20, 256))).astype(np.uint8)
    first[:, 100:] = second[:, 100:] = 0  # black borders of both count for nothing
    expected = [
        np.corrcoef(a[:100].astype(float), b[:100].astype(float))[0, 1]
        for a, b in zip(first, second, strict=True)
    ]
    np.testing.assert_allclose(thumbnail_correlation(first, second), expected, atol=1e-5)
    assert thumbnail_correlation(first, np.zeros_like(first)).tolist() == [0.0] * 20


def test_the_sector_box_ignores_writing_in_the_border():
    picture = np.zeros((200, 240), dtype=np.uint8)
    picture[40:160, 50:200] = 90
    picture[10, 10:14] = 255
    assert sector_box(picture) == (50, 40, 200, 160)
    assert sector_box(np.zeros((20, 30), dtype=np.uint8)) == (0, 0, 30, 20)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 2)])
def test_tiny_pictures_have_columns(shape):
    pixels = np.random.default_rng(3).integers(0, 256, shape).astype(np.uint8)
    found = perceptual_columns(Brightness(pixels))
    assert (len(found["perceptual_hash"]), len(found["thumbnail"])) == (64, 512)
