"""How good a picture is to learn from: per issue a score, 0 (bad) to 1 (good), and a flag.

The scores are facts about the staged pixels; a flag is a score below its threshold, so other
thresholds need no second look at the pixels. Nothing is dropped here: a flagged picture stays in
the pool, and a selection leaves it out only when it is asked to.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pydantic import Field

from echostill.curation.deidentification.brightness import Box, Brightness
from echostill.platform.config import Config
from echostill.platform.tables.schemas import QUALITY_ISSUES, score_column

DARK_LEVEL = 12  # grey levels up to here count as black: JPEG leaves up to about 8 beside an edge
VISIBLE_STEP = 10  # grey levels that a pixel must differ from the background to show something
WHITE_LEVEL = 250  # from here on a pixel is saturated
CHROMA_STEP = 40  # levels between the largest and the smallest of R, G, B: colour, not a tint
STROKE_WIDTH = 5  # pixels of a staged image; the strokes of writing are thinner
STROKE_STEP = 80  # grey levels by which writing stands out from what is around it
TEXT_BLOCK = 8  # pixels; writing is looked for in blocks of this side
TEXT_STROKE_SHARE = 0.1  # of a block's pixels, at least, are strokes where it holds writing
TEXT_FLATNESS = 0.06  # largest spread of what is behind writing, as a share of white
SHARPNESS_SCALE = 0.05  # Laplacian energy over brightness variance; 0.01 to 0.3 is usual
ROUNDING_ENERGY = 20 / 12  # of the Laplacian of what rounding to whole levels adds
FULL_SIDE = 256  # pixels of the shorter side from which a picture is no longer small
ECHO_BLOCK = 8  # pixels; echoes are looked for in blocks of this side, in every second row of them
NEIGHBOURS = 112  # pairs of pixels next to each other in a block
ECHO_ENERGY = 0.5  # mean square by which neighbours differ where there are echoes, at least
ECHO_CHANGES = 0.2  # share of neighbours that differ at all, at least: fewer at a drawn edge
NO_ECHOES, ENOUGH_ECHOES = 0.1, 0.15  # share of the sector's blocks; real images have 0.4 to 1
NOISE = 0.95  # share of the variance that neighbours do not share; real images have 0 to 0.4
SMALL_REGION = 0.1  # of the largest lit region's area; what is smaller is no part of the sector
SECTOR_GRID = 32  # cells along each side in which the sector is looked for

_SCORE_COLUMNS = tuple(score_column(issue) for issue in QUALITY_ISSUES)


def _threshold(default: float, description: str) -> Any:
    return Field(default, ge=0, le=1, description=f"{description} Flag below this; 0 never flags.")


class QualitySettings(Config):
    """Score below which a picture is flagged, for each issue."""

    blank: float = _threshold(
        0.02, "Share of pixels that differ from the background; 0 where no echoes are in sight."
    )
    dark: float = _threshold(0.2, "99th percentile of the brightness.")
    saturated: float = _threshold(0.9, "1 - share of the sector's pixels that are white.")
    blurred: float = _threshold(0.15, "Fine detail against contrast, inside the sector.")
    low_information: float = _threshold(0.3, "Entropy of the sector's grey levels over 8 bits.")
    odd_aspect: float = _threshold(0.35, "Shorter over longer side, before staging.")
    odd_size: float = _threshold(0.25, "Shorter side before staging over 256 pixels, at most 1.")
    overlay_text: float = _threshold(0.998, "1 - share of the picture that looks like writing.")
    coloured: float = _threshold(0.98, "1 - share of pixels with colour (Doppler, markers).")
    small_sector: float = _threshold(0.15, "Share of the picture that the sector covers.")


def quality_columns(
    pixels: np.ndarray,
    brightness: Brightness,
    original_width: int,
    original_height: int,
    settings: QualitySettings,
) -> dict[str, float | bool]:
    """Return every score and flag of a staged picture, by the pool's column names.

    Args:
        pixels: uint8 (H, W) or (H, W, 3), as staged.
        brightness: Of these pixels.
        original_width: Before staging, in pixels.
        original_height: Before staging, in pixels.
        settings: Thresholds of the flags.
    """
    scores = quality_scores(pixels, brightness, original_width, original_height)
    # As the table holds them: a flag made again from the stored score must be the same.
    stored = np.array([scores[issue] for issue in QUALITY_ISSUES], dtype=np.float32)
    thresholds = [getattr(settings, issue) for issue in QUALITY_ISSUES]
    flagged = stored < np.array(thresholds, dtype=np.float32)
    columns: dict[str, float | bool] = dict(zip(_SCORE_COLUMNS, stored.tolist(), strict=True))
    columns.update(zip(QUALITY_ISSUES, flagged.tolist(), strict=True))
    return columns


def quality_scores(
    pixels: np.ndarray, brightness: Brightness, original_width: int, original_height: int
) -> dict[str, float]:
    """Return the score of each issue, 0 (bad) to 1 (good).

    Args:
        pixels: uint8 (H, W) or (H, W, 3), as staged.
        brightness: Of these pixels.
        original_width: Before staging, in pixels.
        original_height: Before staging, in pixels.
    """
    histogram = brightness.histogram
    sector = sector_grid(brightness)
    inside = brightness.inside(_box_of(sector, brightness.levels.shape))
    shorter, longer = sorted((original_width, original_height))
    return {
        "blank": _visible_share(histogram) * _of_echoes(echo_share(inside)),
        "dark": _percentile(histogram, 0.99) / 255,
        "saturated": 1 - float(inside.histogram[WHITE_LEVEL:].sum()) / inside.levels.size,
        "blurred": _sharpness(inside),
        "low_information": _entropy(inside.histogram) / 8,
        "odd_aspect": shorter / longer,
        "odd_size": min(1.0, shorter / FULL_SIDE),
        "overlay_text": 1 - text_share(brightness.levels),
        "coloured": 1 - _colour_share(pixels),
        "small_sector": float(sector.mean()),
    }


def flags(scores: pa.Table, settings: QualitySettings) -> pa.Table:
    """Make the flags again from the score columns, with other thresholds.

    Args:
        scores: A table with the ``<issue>_score`` columns.
        settings: Thresholds.

    Returns:
        One boolean column per issue; null where the score is.
    """
    columns: Mapping[str, Any] = {
        issue: pc.less(
            scores[score_column(issue)], pa.scalar(getattr(settings, issue), pa.float32())
        )
        for issue in QUALITY_ISSUES
    }
    return pa.table(dict(columns))


def sector_grid(brightness: Brightness) -> np.ndarray:
    """Find the sector of a picture coarsely: its large lit regions, with the gaps filled.

    Returns:
        (32, 32) bool, over the whole picture; all false where nothing is lit.
    """
    from scipy import ndimage  # not for the questions to a store, which need the flags alone

    size = (SECTOR_GRID, SECTOR_GRID)
    quarter = brightness.image.reduce(4)  # first: then the rest is quick
    small = np.asarray(quarter.resize(size, Image.Resampling.BOX))
    # Cells that share an edge are connected.
    labels, count = ndimage.label(small > DARK_LEVEL, ndimage.generate_binary_structure(2, 1))
    if count == 0:
        return np.zeros(size, dtype=bool)
    # Writing and grey bars are small beside the largest region; what a shadow cuts off is not.
    area = np.bincount(labels.ravel())
    area[0] = 0
    lit = (area >= SMALL_REGION * area.max())[labels]
    # Shadows and cysts are dark and still sector: what lies between lit cells of a row and of a
    # column belongs to it.
    along_columns, along_rows = _between(np.stack([lit.T, lit]))
    enclosed: np.ndarray = along_columns.T & along_rows
    return enclosed


def text_share(grey: np.ndarray) -> float:
    """Estimate the share of a picture that writing and markers cover.

    Writing is bright, made of thin upright strokes, and stands on an even background. Fascia and
    bone are thin and bright too, but lie along the wave front: a row follows them for long.

    Args:
        grey: uint8 (H, W).

    Returns:
        Share of the blocks of 8 x 8 pixels that look like writing, 0..1.
    """
    height, width = (side // TEXT_BLOCK * TEXT_BLOCK for side in grey.shape)
    if height == 0 or width == 0:
        return 0.0
    background = _opened_along_rows(grey, STROKE_WIDTH)[:height, :width]
    strokes = (grey[:height, :width] - background) > STROKE_STEP
    shape = (height // TEXT_BLOCK, TEXT_BLOCK, width // TEXT_BLOCK, TEXT_BLOCK)
    # Rows first, which is quick, and leaves an eighth to be added up along the rows.
    rows = strokes.view(np.uint8).reshape(shape[0], TEXT_BLOCK, width).sum(axis=1, dtype=np.uint8)
    count = rows.reshape(shape[0], shape[2], TEXT_BLOCK).sum(axis=2, dtype=np.uint8)
    row, column = np.nonzero(count >= TEXT_STROKE_SHARE * TEXT_BLOCK**2)
    if not len(row):
        return 0.0
    behind = background.reshape(shape)[row, :, column]
    even = behind.std(axis=(1, 2), dtype=np.float32) <= 255 * TEXT_FLATNESS
    return float(np.count_nonzero(even) / count.size)


def echo_share(brightness: Brightness) -> float:
    """Estimate the share of a picture that shows echoes, sharp or not.

    Speckle and tissue change from pixel to pixel. What a program has drawn (bars, writing, an empty
    screen) is even but for its edges. Noise changes too, but in a picture of nothing else a pixel
    tells nothing of its neighbours: half the mean square of their differences is the variance.

    Args:
        brightness: Of the sector.

    Returns:
        Share of the blocks of 8 x 8 pixels that look like echoes, 0..1; 0 if all is noise, and 1 if
        there is no whole block.
    """
    rows, columns = (side // ECHO_BLOCK for side in brightness.levels.shape)
    if rows == 0 or columns == 0:
        return 1.0
    whole = brightness.levels[: rows * ECHO_BLOCK, : columns * ECHO_BLOCK]
    blocks = whole.reshape(rows, ECHO_BLOCK, columns, ECHO_BLOCK)[::2]
    # Pixels first, blocks last: then all sums run over long rows. Whole numbers add up exactly.
    pixels = np.ascontiguousarray(blocks.transpose(1, 3, 0, 2), dtype=np.int16)
    energy, changes = (np.zeros(pixels.shape[2:], dtype=np.int32) for _ in range(2))
    for along in (pixels, pixels.swapaxes(0, 1)):
        step = along[1:] - along[:-1]
        energy += np.square(step, dtype=np.int32).sum(axis=(0, 1), dtype=np.int32)
        changes += np.count_nonzero(step, axis=(0, 1)).astype(np.int32)
    mean_energy = int(energy.sum(dtype=np.int64)) / (energy.size * NEIGHBOURS)
    if mean_energy / 2 > NOISE * brightness.variance:
        return 0.0
    varied = (energy >= ECHO_ENERGY * NEIGHBOURS) & (changes >= ECHO_CHANGES * NEIGHBOURS)
    return float(varied.mean())


def _of_echoes(share: float) -> float:
    """Return 0 where a picture shows no echoes, 1 where it shows enough."""
    return min(1.0, max(0.0, (share - NO_ECHOES) / (ENOUGH_ECHOES - NO_ECHOES)))


def _between(lit: np.ndarray) -> np.ndarray:
    """Fill the gaps between the first and the last lit cell along the last axis."""
    forward = np.maximum.accumulate(lit, axis=-1)
    backward = np.maximum.accumulate(lit[..., ::-1], axis=-1)[..., ::-1]
    return forward & backward


def _box_of(sector: np.ndarray, shape: tuple[int, ...]) -> Box:
    """Return the box around the sector in a picture of this shape; all where there is no sector."""
    height, width = shape
    rows, columns = (np.flatnonzero(sector.any(axis=axis)).tolist() for axis in (1, 0))
    if not rows:
        return 0, 0, width, height
    top, bottom = rows[0] * height // SECTOR_GRID, -(-(rows[-1] + 1) * height // SECTOR_GRID)
    left, right = columns[0] * width // SECTOR_GRID, -(-(columns[-1] + 1) * width // SECTOR_GRID)
    return left, top, right, bottom


def _visible_share(histogram: np.ndarray) -> float:
    """Share of pixels that differ from the most frequent level by more than a step."""
    background = int(histogram.argmax())
    near = histogram[max(0, background - VISIBLE_STEP) : background + VISIBLE_STEP + 1]
    return 1 - float(near.sum() / histogram.sum())


def _percentile(histogram: np.ndarray, share: float) -> int:
    return int(np.searchsorted(np.cumsum(histogram), share * histogram.sum()))


def _entropy(histogram: np.ndarray) -> float:
    """Entropy in bits of the grey levels."""
    share = histogram[histogram > 0] / histogram.sum()
    return float(max(0.0, -(share * np.log2(share)).sum()))


def _sharpness(brightness: Brightness) -> float:
    """Energy of the Laplacian over the variance of the brightness, squashed to 0..1.

    Rounding to whole levels adds noise of variance 1/12 to each pixel; the Laplacian's weights
    (four of 1, one of 4) make that 20/12, which would pass for detail where contrast is low.
    """
    height, width = brightness.levels.shape
    if min(height, width) < 3 or brightness.variance == 0:
        return 0.0
    # The rows end to end: one long array is quicker.
    line = brightness.levels.astype(np.int16).ravel()
    middle = line[width:-width]
    laplacian = line[: -2 * width] + line[2 * width :]
    laplacian += line[width - 1 : -width - 1]
    laplacian += line[width + 1 : line.size - width + 1]
    laplacian -= 4 * middle
    # Whole numbers, which add up exactly, and without the threads of BLAS.
    squares = np.square(laplacian.reshape(height - 2, width)[:, 1:-1], dtype=np.int32)
    energy = max(0.0, int(squares.sum(dtype=np.int64)) / squares.size - ROUNDING_ENERGY)
    return 1 - math.exp(-energy / brightness.variance / SHARPNESS_SCALE)


def _colour_share(pixels: np.ndarray) -> float:
    if pixels.ndim == 2:
        return 0.0
    red, green, blue = np.asarray(Image.fromarray(pixels).reduce(2)).transpose(2, 0, 1)
    largest = np.maximum(np.maximum(red, green), blue)
    chroma = largest - np.minimum(np.minimum(red, green), blue)
    return float((chroma > CHROMA_STEP).mean())


def _opened_along_rows(grey: np.ndarray, size: int) -> np.ndarray:
    """Opening by a row of odd length: what is left when all that is narrower is taken away.

    Rows are laid end to end with their edges repeated between them, so that the shifts run over one
    long array, several times as fast.
    """
    height, width = grey.shape
    margin = size - 1
    # Both passes together move all by the margin to the left, and take it off at the end.
    line = np.zeros(height * (width + 2 * margin) + 2 * margin, dtype=np.uint8)
    padded = line[margin:-margin].reshape(height, -1)
    padded[:, margin:-margin] = grey
    padded[:, :margin] = grey[:, :1]
    padded[:, -margin:] = grey[:, -1:]
    for choose in (np.minimum, np.maximum):
        reach = 1  # pixels of which each is the extreme by now
        while reach < size:
            step = min(reach, size - reach)
            line = choose(line[:-step], line[step:])
            reach += step
    return line.reshape(padded.shape)[:, margin:-margin]
