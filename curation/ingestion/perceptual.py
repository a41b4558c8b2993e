"""Perceptual hashes and thumbnails: what a picture still has in common with a copy of itself.

A copy that was resized, saved again as JPEG or made a little brighter keeps its low frequencies.
The hash is the signs of 256 of them (the discrete cosine transform of a 32 x 32 picture), so two
copies differ in a few bits and two pictures in about 128. It is taken twice: of the whole picture,
and of its sector alone, which a copy with other borders keeps. A thumbnail of each lets a second
look confirm what the bits suggest.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from echostill.curation.deidentification.brightness import Box, Brightness
from echostill.curation.ingestion.quality import DARK_LEVEL

SIDE = 32  # pixels of the square that is transformed
BITS = 256
BANDS = 8  # of 32 bits each: what the search for close hashes looks up
VIEWS = 2  # the picture, the sector
THUMBNAIL_SIDE = 16
LIT_SHARE = 0.03  # of a row's or column's pixels, at least, are lit where it crosses the sector
ZERO = 1e-6  # a coefficient up to here is rounding's, whose sign another processor may turn
FLAT_SPREAD = 1.0  # grey levels; below this spread a picture has no frequencies to speak of


def _coefficients() -> np.ndarray:
    """Positions (in the flattened transform) of the hash's bits, band after band.

    The 256 lowest frequencies without the mean, by the sum of both indices. Every band gets some of
    each: neighbours in frequency flip together, and are kept apart.
    """
    row, column = np.mgrid[:SIDE, :SIDE]
    order = np.lexsort((row.ravel(), np.maximum(row, column).ravel(), (row + column).ravel()))
    lowest = order[1 : BITS + 1]
    return np.ascontiguousarray(lowest.reshape(BITS // BANDS, BANDS).T.ravel())


_POSITIONS = _coefficients()


def _cosines() -> np.ndarray:
    """Return the orthonormal DCT-II of one axis, (32, 32): frequency by pixel."""
    frequency, pixel = np.mgrid[:SIDE, :SIDE]
    waves = np.cos(np.pi * (2 * pixel + 1) * frequency / (2 * SIDE))
    waves[0] /= np.sqrt(2)
    return np.asarray(waves * np.sqrt(2 / SIDE))


_COSINES = _cosines()


def perceptual_columns(brightness: Brightness) -> dict[str, bytes]:
    """Return the columns ``perceptual_hash`` (64 bytes) and ``thumbnail`` (512 bytes) of a picture.

    Args:
        brightness: Of the picture as staged.
    """
    height, width = brightness.levels.shape
    # Half the size has all the frequencies that are looked at, and costs a quarter. The boxes keep
    # their fractions: of an odd side, the last half pixel is only half there.
    half = brightness.image.reduce(2)
    boxes = (0, 0, width, height), sector_box(brightness.levels)
    views = {box: _square(half, box) for box in set(boxes)}  # one, where all is sector
    squares = np.array([views[box] for box in boxes])
    return {
        "perceptual_hash": hash_squares(squares).tobytes(),
        "thumbnail": _thumbnails(squares).tobytes(),
    }


def _square(half: Image.Image, box: Box) -> np.ndarray:
    """Shrink what lies in a box of the picture, itself at half the size, to (32, 32) uint8."""
    left, top, right, bottom = box
    # Antialiased with a smooth filter: how the pixel grid lies then changes little.
    return np.asarray(
        half.resize(
            (SIDE, SIDE), Image.Resampling.HAMMING, (left / 2, top / 2, right / 2, bottom / 2)
        )
    )


def _thumbnails(squares: np.ndarray) -> np.ndarray:
    """Average squares (N, 32, 32) to (N, 16, 16) uint8."""
    rows = squares[:, ::2].astype(np.uint16) + squares[:, 1::2]
    total = rows[..., ::2] + rows[..., 1::2]
    mean: np.ndarray = ((total + 2) >> 2).astype(np.uint8)  # to the nearest level, halves up
    return mean


def sector_box(grey: np.ndarray) -> Box:
    """Return the box without the black borders: left, top, right, bottom, in pixels.

    A row or column with few lit pixels (a border with writing on it) is border too. A picture
    without any lit row or column is kept whole.

    Args:
        grey: uint8 (H, W).
    """
    lit = (grey > DARK_LEVEL).view(np.uint8)
    height, width = grey.shape
    rows = np.flatnonzero(lit.sum(axis=1, dtype=np.uint32) >= LIT_SHARE * width)
    columns = np.flatnonzero(lit.sum(axis=0, dtype=np.uint32) >= LIT_SHARE * height)
    if not len(rows) or not len(columns):
        return 0, 0, width, height
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def hash_squares(squares: np.ndarray) -> np.ndarray:
    """Hash square pictures.

    Args:
        squares: (N, 32, 32) grey levels, any number type.

    Returns:
        (N, 4) uint64: 256 bits each, band after band. All zero where the picture is flat: it has
        nothing to be recognised by.
    """
    transform = _COSINES @ squares.astype(np.float64) @ _COSINES.T
    transform = transform.reshape(len(squares), -1)
    # The transform keeps the energy, so the spread is that of all but the mean.
    spread = np.sqrt(np.square(transform[:, 1:]).mean(axis=1))
    bits = (transform[:, _POSITIONS] > ZERO) & (spread >= FLAT_SPREAD)[:, None]
    packed = np.packbits(np.ascontiguousarray(bits), axis=1, bitorder="little")
    return packed.view(np.uint64)


def as_hashes(column: pa.ChunkedArray) -> np.ndarray:
    """Return the column ``perceptual_hash`` as numbers, (N, 2, 4) uint64: picture, sector.

    A row without one (null) is zero, as a flat picture is.
    """
    return _bytes_of(column, VIEWS * BITS // 8).view(np.uint64).reshape(-1, VIEWS, BITS // 64)


def as_thumbnails(column: pa.ChunkedArray) -> np.ndarray:
    """Return the column ``thumbnail`` as grey levels, (N, 2, 256) uint8: picture, sector."""
    return _bytes_of(column, VIEWS * THUMBNAIL_SIDE**2).reshape(-1, VIEWS, THUMBNAIL_SIDE**2)


def _bytes_of(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Return a column of fixed-size binary as (N, width) uint8; null becomes zeros."""
    whole = pc.fill_null(column, bytes(width)).combine_chunks()
    if not len(whole):
        return np.empty((0, width), dtype=np.uint8)
    values = np.frombuffer(whole.buffers()[1], dtype=np.uint8)
    return values[whole.offset * width : (whole.offset + len(whole)) * width].reshape(-1, width)


def hamming(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number of bits that differ, over the last axis of packed hashes."""
    bits: np.ndarray = np.bitwise_count(first ^ second).sum(axis=-1, dtype=np.int16)
    return bits


def thumbnail_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlate pairs of thumbnails where either of them is lit.

    Black borders are alike in all of ultrasound: counted in, they would make every two fans alike.

    Args:
        first: (P, 256) uint8.
        second: (P, 256) uint8.

    Returns:
        (P,) float32 in -1..1; 0 where one of the two is flat.
    """
    weight = ((first > DARK_LEVEL) | (second > DARK_LEVEL)).astype(np.float32)
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
    a, b = (
        (view - (view * weight).sum(axis=1, keepdims=True) / total) * weight
        for view in (first.astype(np.float32), second.astype(np.float32))
    )
    length = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    product = (a * b).sum(axis=1)
    cosine: np.ndarray = np.divide(product, length, out=np.zeros_like(product), where=length > 0)
    return cosine
