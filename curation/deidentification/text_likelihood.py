"""How likely a picture has lettering drawn into it, and where.

The text is not read (OCR takes seconds a frame). Lettering is strokes of one width and one
brightness, in pieces of one height that stand in a row; speckle and fibres have some of these
traits, seldom all. Each row of pieces gets a score from a logistic model over its traits, whose
weights and measured recall and false alarms come from ``benchmarks/deidentification.py``.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.special import expit

from echostill.curation.deidentification.filters import grow, shrink
from echostill.curation.deidentification.sector import Box, brightest

_STROKE = 7  # widest stroke in pixels, at each of the scales 1, 1/2 and 1/4 (2 in small pictures)
_CONTRAST = 24  # least difference of a stroke from its surroundings, in grey levels
_LOWEST, _HIGHEST = 5, 44  # of a letter in pixels, at the scale looked at
_GAP = 1.3  # widest gap between the pieces of a row, in heights
_MOST_PIECES = 8000  # of one picture; above it is noise, and the pieces of most contrast are kept
_SMALLEST_SIDE = 100  # of a picture that is looked at once more at half its size
_SMALL_SIDE = 320  # of a picture that is looked at once more at twice its size
_BRIGHT = 140  # ground on which dark lettering is looked for
_COLOURED = 48  # difference of channels that grey pixels do not have
_FEWEST_PIXELS = 12  # of which three letters are drawn

TRAITS = (
    "pieces",  # logarithm of their number
    "alignment",  # mean deviation of tops or bottoms, the smaller, in heights
    "misalignment",  # the larger of both
    "peaks",  # spread of the pieces' brightest pixels, in contrasts
    "evenness",  # spread of brightness inside a piece, in contrasts
    "contrast",  # logarithm, in grey levels
    "boldness",  # stroke width in heights
    "edges",  # steepness of the rim, in contrasts
    "aspect",  # width of a piece in heights
)
WEIGHTS = np.array([5.4, -7.3, -6.8, -4.4, -9.8, 4.7, 11.0, 5.5, -3.3])
INTERCEPT = -25.4


@dataclass(frozen=True)
class Row:
    """Pieces in a row: their box, traits (in the order of ``TRAITS``) and score 0..1."""

    box: Box
    traits: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class _Pieces:
    """Strokes that touch, one entry each: half-open boxes, and measures of their pixels."""

    x0: np.ndarray
    y0: np.ndarray
    x1: np.ndarray
    y1: np.ndarray
    area: np.ndarray
    contrast: np.ndarray
    peak: np.ndarray
    spread: np.ndarray
    stroke: np.ndarray
    steepness: np.ndarray

    def take(self, chosen: np.ndarray) -> "_Pieces":
        return _Pieces(*(getattr(self, name)[chosen] for name in _Pieces.__dataclass_fields__))


def text_rows(frame: np.ndarray) -> list[Row]:
    """Find rows of what may be lettering, the likeliest first.

    Args:
        frame: uint8 (H, W) or (H, W, 3).

    Returns:
        Every row with three pieces or more, however unlikely; none in a picture without strokes.
    """
    rows = _rows_at_scales(brightest(frame), with_dark=True)
    if frame.ndim == 3:
        # Coloured lettering on grey tissue is as bright as the tissue, and alone in its colour.
        low = np.minimum(np.minimum(frame[..., 0], frame[..., 1]), frame[..., 2])
        colour = brightest(frame) - low
        if np.count_nonzero(colour >= _COLOURED) >= _FEWEST_PIXELS:
            rows += _rows_at_scales(colour, with_dark=False)
    return sorted(rows, key=lambda row: (-row.score, row.box))


def _rows_at_scales(value: np.ndarray, with_dark: bool) -> list[Row]:
    rows: list[Row] = []
    if max(value.shape) <= _SMALL_SIDE:
        # A picture this small has been shrunk, and its letters with it.
        rows += _rows(_double(value), 0.5)
    scale = 1
    while scale == 1 or (scale <= 4 and min(value.shape) >= _SMALLEST_SIDE):
        rows += _rows(value, scale)
        bright = np.count_nonzero(value >= _BRIGHT)
        if with_dark and scale == 1 and bright > value.size // 100:
            rows += _rows(255 - value, scale)
        value, scale = _halve(value), scale * 2
    return rows


def _double(value: np.ndarray) -> np.ndarray:
    """Return the picture at twice its size, interpolated between neighbours."""
    for _ in (0, 1):
        wide = np.empty((value.shape[0], 2 * value.shape[1]), dtype=np.uint8)
        nearest = value.astype(np.uint16)
        other = np.concatenate([nearest[:, 1:], nearest[:, -1:]], axis=1)
        wide[:, ::2], wide[:, 1::2] = value, (nearest + other) // 2
        value = wide.T
    return value


def _halve(value: np.ndarray) -> np.ndarray:
    even = value[: value.shape[0] // 2 * 2, : value.shape[1] // 2 * 2].astype(np.uint16)
    total = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def _rows(value: np.ndarray, scale: float) -> list[Row]:
    pieces = _pieces(value)
    if pieces is None:
        return []
    rows = []
    for members in _neighbours(pieces):
        row = pieces.take(members)
        edges = (row.x0.min(), row.y0.min(), row.x1.max(), row.y1.max())
        box = (int(edges[0]), int(edges[1]), int(edges[2]), int(edges[3]))
        traits = _traits(row)
        score = float(expit(traits @ WEIGHTS + INTERCEPT))
        x0, y0 = (int(edge * scale) for edge in box[:2])
        x1, y1 = (math.ceil(edge * scale) for edge in box[2:])
        rows.append(Row((x0, y0, x1, y1), tuple(traits.tolist()), score))
    return rows


def _pieces(value: np.ndarray) -> _Pieces | None:
    """Cut bright strokes out of their surroundings, at half of the height of their top-hat."""
    height = value - grow(shrink(value, _STROKE), _STROKE)
    strokes = (height >= _CONTRAST) & (height > grow(height, _STROKE) // 2)
    labels, count = ndimage.label(strokes, structure=np.ones((3, 3), dtype=np.int8))
    if count < 3:
        return None
    boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(labels)]
    x0, y0, x1, y1 = np.array(boxes).T
    inside = np.flatnonzero(labels)
    piece = labels.ravel()[inside] - 1

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(piece, values, minlength=count)

    area = total(np.ones(len(inside)))
    rim = _free_sides(strokes).ravel()[inside]
    brightness = value.ravel()[inside].astype(np.float64)
    mean = total(brightness) / area
    variance = np.maximum(total(brightness**2) / area - mean**2, 0)
    slope = (grow(value, 3) - shrink(value, 3)).ravel()[inside]
    peak = np.zeros(count)
    np.maximum.at(peak, piece, brightness)
    pieces = _Pieces(
        x0, y0, x1, y1,
        area=area,
        contrast=total(height.ravel()[inside]) / area,
        peak=peak,
        spread=np.sqrt(variance),
        stroke=2 * area / np.maximum(total(rim), 1),  # a long stroke has two sides
        steepness=total(slope * (rim > 0)) / np.maximum(total(rim > 0), 1),
    )  # fmt: skip
    high, wide = y1 - y0, x1 - x0
    letter = (high >= _LOWEST) & (high <= _HIGHEST) & (wide <= 6 * high) & (area > 5)
    chosen = np.flatnonzero(letter & (area > 0.12 * high * wide))
    if len(chosen) > _MOST_PIECES:
        strongest = np.argsort(-pieces.contrast[chosen], kind="stable")[:_MOST_PIECES]
        chosen = np.sort(chosen[strongest])
    return pieces.take(chosen) if len(chosen) >= 3 else None


def _free_sides(strokes: np.ndarray) -> np.ndarray:
    """Count the sides on which each pixel borders on none of a map: 0 to 4."""
    free = np.full(strokes.shape, 4, dtype=np.uint8)
    free[1:] -= strokes[:-1]
    free[:-1] -= strokes[1:]
    free[:, 1:] -= strokes[:, :-1]
    free[:, :-1] -= strokes[:, 1:]
    return free


def _neighbours(pieces: _Pieces) -> list[np.ndarray]:
    """Group the pieces that could be letters of one row; groups of three or more."""
    order = np.argsort(pieces.x0, kind="stable")
    pieces = pieces.take(order)
    height = (pieces.y1 - pieces.y0).astype(np.float64)
    # The candidates of a piece are those that begin between its own beginning and its reach.
    reach = np.searchsorted(pieces.x0, pieces.x1 + _GAP * 1.8 * height + 1, side="right")
    count = reach - np.arange(len(order)) - 1
    first = np.repeat(np.arange(len(order)), count)
    second = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count) + first + 1
    low, high = _extremes(height, first, second)
    shared = np.minimum(pieces.y1[first], pieces.y1[second])
    shared = shared - np.maximum(pieces.y0[first], pieces.y0[second])
    near = (shared >= 0.6 * low) & (high <= 1.8 * low)
    first, second, low, high = first[near], second[near], low[near], high[near]
    gap = pieces.x0[second] - pieces.x1[first]
    faint, strong = _extremes(pieces.contrast, first, second)
    thin, thick = _extremes(pieces.stroke, first, second)
    alike = (gap >= -0.3 * low) & (gap <= _GAP * high + 1)
    alike &= (faint >= 0.4 * strong) & (thick <= 1.8 * thin)
    alike &= np.abs(pieces.peak[first] - pieces.peak[second]) <= 40
    if not alike.any():
        return []
    links = (np.ones(int(alike.sum())), (first[alike], second[alike]))
    graph = sparse.coo_matrix(links, shape=(len(order), len(order)))
    groups, group = sparse.csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(group, minlength=groups)
    members = np.split(order[np.argsort(group, kind="stable")], np.cumsum(sizes)[:-1])
    return [member for member in members if len(member) >= 3]


def _extremes(
    values: np.ndarray, first: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    return np.minimum(values[first], values[second]), np.maximum(values[first], values[second])


def _traits(row: _Pieces) -> np.ndarray:
    heights, widths = row.y1 - row.y0, row.x1 - row.x0
    height, contrast = float(np.median(heights)), float(row.contrast.mean())
    tops = float(np.abs(row.y0 - np.median(row.y0)).mean()) / height
    bottoms = float(np.abs(row.y1 - np.median(row.y1)).mean()) / height
    return np.array(
        [
            np.log(len(heights)),
            min(tops, bottoms),
            max(tops, bottoms),
            row.peak.std() / contrast,
            np.median(row.spread) / contrast,
            np.log(contrast),
            row.stroke.mean() / height,
            row.steepness.mean() / contrast,
            widths.mean() / height,
        ]
    )
