"""The outline of tissue in a picture: by its texture, and in cines by what moves.

What is drawn stands on an even ground, tissue varies. Lettering on an even ground is painted over
before tissue is looked for, so that it neither widens the outline nor joins it. The outline is the
convex hull of the large areas, or a rectangle where they fill one; where lettering stands beside
the tissue, what is no tissue around it is cut off.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from echostill.curation.deidentification.brightness import Box
from echostill.curation.deidentification.filters import grow, shrink

WORKING_SIDE = 256  # a sector's outline is coarse: finding it at this size is quick and steadier
_TEXTURE = 4  # grey levels between neighbours that tissue exceeds and a drawn background does not
_BLACK = 3  # grey levels that compression makes of an even ground
_MOTION = 6  # grey levels over time that noise of compression stays below, mostly
_WHOLE = 0.93  # a sector above this share of the frame has no border worth cutting
_SMALL = 32  # frames below this side have no room for borders beside the sector
_RINGING = 6  # grey levels that compression makes of an even ground beside lettering
_EVEN_SHARE = 0.5  # of what is around a text that is even ground, at least, where it is on one
_NEAR = 8  # pixels around a text, at most, that are its ground
_BETWEEN = 0.2  # share of a text's box that is ground between its strokes, at least
_BORDER_SHARE = 0.5  # of a frame's border that has the ground's grey, at least
_DARK = 110  # grey level up to which a screen's ground is looked for
_FILLED = 0.9  # share of a rectangle that tissue fills, at least
_LIT, _UNLIT = 0.6, 0.3  # shares of the lines inside and outside of a rectangle's side that vary
_PARTLY = 0.45  # share inside of a side that a shadow or a vessel reaches, at least
_THIN = (1, 3, 5)  # blocks: what is up to as thin is no tissue, if there is text beside it
_TOUCHES = 0.02  # share of a text's box inside an outline from which it has the text in it
_MOSTLY = 0.3  # the same of a box that reaches over the tissue's edge
_SOLID = 0.6  # share of what varies that is thicker than a line, where there is tissue
_THICK = 15  # blocks: what is as wide outside of a rectangle is tissue


@dataclass(frozen=True)
class Outline:
    """Where tissue is.

    Attributes:
        mask: (H, W) bool.
        confidence: 0..1.
        method: ``texture``, ``motion``, ``whole`` or ``none``.
        text_beside: Whether text stands on an even ground outside of the tissue.
    """

    mask: np.ndarray
    confidence: float
    method: str
    text_beside: bool = False


def find_outline(
    value: np.ndarray, change: np.ndarray | None = None, lettering: Sequence[Box] = ()
) -> Outline:
    """Find the tissue in a picture.

    Args:
        value: uint8 (H, W).
        change: uint8 (H, W), how much each pixel of a cine ever changed; None for a still.
        lettering: Boxes of what may be text.
    """
    if min(value.shape) < _SMALL:
        return Outline(np.ones(value.shape, dtype=bool), 1.0, "whole")
    grounds = ((box, even_ground(value, box)) for box in lettering)
    drawn = {box: level for box, level in grounds if level is not None}
    value = paint_over(value, drawn)
    ground = _screen(value)
    doubtful = [box for box in lettering if box not in drawn and _shows(value, box, ground)]
    # Lines and traces that hang on the tissue are taken off only where text would come with them:
    # thin and faint tissue goes with them.
    tried = []
    for thin in _THIN:
        found = _outline(value, change, drawn, thin)
        if not any(_share(found.mask, box) > _TOUCHES for box in drawn):
            if not any(_share(found.mask, box) > _MOSTLY for box in doubtful):
                return found
            tried.append(found)
    return tried[0] if tried else found


def _shows(value: np.ndarray, box: Box, ground: int) -> bool:
    """Return whether the screen's ground shows in a box, though it may be on tissue's edge."""
    x0, y0, x1, y1 = box
    off = np.abs(value[y0:y1, x0:x1].astype(np.int16) - ground)
    return bool(off.size and (off <= _RINGING).mean() >= _BETWEEN)


def _share(mask: np.ndarray, box: Box) -> float:
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1]
    return float(inside.mean()) if inside.size else 0.0


def _outline(
    value: np.ndarray, change: np.ndarray | None, drawn: Iterable[Box], thin: int
) -> Outline:
    """Find the outline once, without what is up to ``thin`` blocks thin."""
    step = -(-max(value.shape) // WORKING_SIDE)
    ground = _screen(value)
    textured, method = _without(_texture(value, step, ground), thin), "texture"
    if change is not None:
        moving = textured & (_blocks(change, step, np.minimum) > _MOTION)
        # A clip in which little moves says nothing about what is an overlay.
        if moving.sum() >= 0.3 * sum(int(area.sum()) for area in _large(textured)):
            textured, method = moving, "motion"
    areas = _large(textured)
    if not areas:
        return Outline(np.zeros(value.shape, dtype=bool), 0.0, "none")
    tissue = np.logical_or.reduce(areas)
    mask = _rectangle(value, ground, tissue, textured, step)
    if mask is None:
        mask = np.logical_or.reduce([_hull(area, step, value.shape) for area in areas])
    small = _blocks(mask, step, np.maximum)
    confidence = _confidence(textured, tissue & small, small)
    text_beside = _cut_off(mask, tissue, step, drawn)
    if mask.mean() > _WHOLE and not text_beside:
        return Outline(np.ones(value.shape, dtype=bool), confidence, "whole")
    return Outline(mask, confidence, method, text_beside)


def even_ground(value: np.ndarray, box: Box) -> int | None:
    """Return the grey of the even ground that a box's text stands on; None where it is no such."""
    x0, y0, x1, y1 = box
    margin = min(max(min(y1 - y0, x1 - x0) // 3, 3), _NEAR)
    left, top = max(x0 - margin, 0), max(y0 - margin, 0)
    part = value[top : y1 + margin, left : x1 + margin]
    around = np.ones(part.shape, dtype=bool)
    around[y0 - top : y1 - top, x0 - left : x1 - left] = False
    if around.all() or not around.any():
        return None
    level, share = _commonest(part[around], _RINGING)
    inside = np.abs(part[~around].astype(np.int16) - level) <= _RINGING
    return level if share >= _EVEN_SHARE and inside.mean() >= _BETWEEN else None


def paint_over(value: np.ndarray, drawn: Mapping[Box, int]) -> np.ndarray:
    """Give boxes of text the grey of the ground that they stand on.

    What compression made of the ground around them becomes even too; tissue beside them stays.
    """
    painted = value.copy() if drawn else value
    for (x0, y0, x1, y1), level in drawn.items():
        painted[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = level
        around = painted[max(y0 - 8, 0) : y1 + 8, max(x0 - 8, 0) : x1 + 8]  # blocks of JPEG
        around[np.abs(around.astype(np.int16) - level) <= 2 * _RINGING] = level
    return painted


def _commonest(levels: np.ndarray, reach: int) -> tuple[int, float]:
    """Return the commonest grey level, and the share of those at most ``reach`` away from it."""
    counts = np.bincount(levels, minlength=256)
    level = int(counts.argmax())
    near = counts[max(level - reach, 0) : level + reach + 1].sum()
    return level, float(near / levels.size)


def _screen(value: np.ndarray) -> int:
    """Return the grey of the screen around the tissue: that of most of the frame's border, or 0."""
    border = np.concatenate([value[0], value[-1], value[:, 0], value[:, -1]])
    level, share = _commonest(border, _BLACK)
    return level if share >= _BORDER_SHARE and level <= _DARK else 0


def _texture(value: np.ndarray, step: int, ground: int) -> np.ndarray:
    """Return which blocks of step x step pixels vary, in themselves or against their neighbours.

    Ground that varies a little is compression, another grey that does is dark or smooth tissue;
    what a program draws is even.
    """
    high, low = value, value
    if step > 1:
        high, low = _blocks(value, step, np.maximum), _blocks(value, step, np.minimum)
    lit = (high > ground + _BLACK) | (low < max(ground - _BLACK, 0))
    low, high = shrink(low, 3), grow(high, 3)
    spread = high - low
    off = (low > ground + _BLACK) | (high < max(ground - _BLACK, 0))
    textured: np.ndarray = lit & ((spread > _TEXTURE) | ((spread > 1) & off))
    return textured


def _without(textured: np.ndarray, thin: int) -> np.ndarray:
    """Take lines, rulers and dots out of a map; where much is as thin, it is tissue and stays."""
    solid = grow(shrink(textured, thin), thin) if thin > 1 else textured
    return solid if solid.sum() >= _SOLID * textured.sum() else textured


def _blocks(values: np.ndarray, step: int, extreme: np.ufunc) -> np.ndarray:
    """Reduce blocks of step x step pixels to one value; the last blocks may be smaller."""
    for axis in (0, 1):
        lines = values if axis == 0 else values.T
        reduced = lines[::step].copy()
        for offset in range(1, step):
            part = lines[offset::step]
            extreme(reduced[: len(part)], part, out=reduced[: len(part)])
        values = reduced if axis == 0 else reduced.T
    return values


def _large(textured: np.ndarray) -> list[np.ndarray]:
    """Return the large areas of a map, without holes: lines and lettering are too thin to stay."""
    closed = shrink(grow(textured, 7), 7)
    opened = grow(shrink(closed, 9), 9)
    labels, count = ndimage.label(opened)
    if count == 0:
        return []
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    order = np.flatnonzero(sizes >= 0.3 * sizes.max())
    return [ndimage.binary_fill_holes(labels == label) for label in order]


def _hull(area: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the convex hull of a map's blocks as a mask of the frame's own pixels."""
    height, width = shape
    rim = area & ~ndimage.binary_erosion(area)  # enough, and few points
    rows, columns = np.nonzero(rim)
    corners = step * np.concatenate(
        [np.stack([rows + y, columns + x], axis=1) for y in (0, 1) for x in (0, 1)]
    )
    a, b, c = ConvexHull(corners).equations.T  # inside: a * row + b * column + c <= 0
    y, x = np.arange(height) + 0.5, np.arange(width) + 0.5
    # A convex outline has one left and one right end in each row that it crosses.
    sloped = np.abs(b) > 1e-9
    a, b, c = a[sloped], b[sloped], c[sloped]
    crossing = -(np.outer(y, a) + c) / b
    left = np.where(b < 0, crossing, -np.inf).max(axis=1)
    right = np.where(b > 0, crossing, np.inf).min(axis=1)
    within = (y > corners[:, 0].min()) & (y < corners[:, 0].max())
    mask: np.ndarray = within[:, None] & (x >= left[:, None]) & (x <= right[:, None])
    return mask


def _rectangle(
    value: np.ndarray, ground: int, tissue: np.ndarray, textured: np.ndarray, step: int
) -> np.ndarray | None:
    """Return the rectangle that tissue fills with sharp sides; None where it has another shape.

    What hangs on it (a bar, a ruler, a caption that was not known for text) is parted from it by a
    line of ground, or reaches along a small part of a side.

    Args:
        value: uint8 (H, W).
        ground: Grey of the screen.
        tissue: (h, w) bool, the large areas, in blocks of ``step`` pixels.
        textured: (h, w) bool, the blocks that vary.
        step: Pixels along a block's side.
    """
    height, width = value.shape
    rows, columns = (np.flatnonzero(tissue.any(axis=axis)) for axis in (1, 0))
    box = [
        int(columns[0]) * step, int(rows[0]) * step,
        min(int(columns[-1] + 1) * step, width), min(int(rows[-1] + 1) * step, height),
    ]  # fmt: skip
    lit = np.abs(value.astype(np.int16) - ground) > _RINGING
    centre = [int(part * step) for part in ndimage.center_of_mass(tissue)]
    for _ in range(3):
        for axis in (1, 0):
            share = lit[box[1] : box[3], box[0] : box[2]].mean(axis=1 - axis)
            first, last = box[1 - axis], box[3 - axis]
            run = _run(share > _UNLIT, min(max(centre[axis], first), last - 1) - first)
            if run is None:
                return None
            box[1 - axis], box[3 - axis] = first + run[0], first + run[1]
    x0, y0, x1, y1 = box
    inner = slice(y0 // step, -(-y1 // step)), slice(x0 // step, -(-x1 // step))
    # Traces and lines of text fill an area as tissue does only once what parts them is closed.
    outside = tissue & shrink(grow(textured, 3), 3)
    outside[inner] = False
    # A shadow that reaches a side is black, but stands between tissue on both of its sides.
    filled = _hull(tissue, 1, tissue.shape)[inner].mean()
    if filled < _FILLED or shrink(outside, _THICK).any():
        return None
    within = (lit[y0:y1, x0:x1][:, :3], lit[y0:y1, x0:x1][:, -3:],
              lit[y0:y1, x0:x1][:3], lit[y0:y1, x0:x1][-3:])  # fmt: skip
    beside = (lit[y0:y1, max(x0 - 2, 0) : x0], lit[y0:y1, x1 : x1 + 2],
              lit[max(y0 - 2, 0) : y0, x0:x1], lit[y1 : y1 + 2, x0:x1])  # fmt: skip
    if min(part.mean() for part in within) < _PARTLY or np.mean([p.mean() for p in within]) < _LIT:
        return None
    if any(part.size and part.mean() > _UNLIT for part in beside):
        return None
    mask = np.zeros(value.shape, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def _run(flags: np.ndarray, at: int) -> tuple[int, int] | None:
    """Return the run of true values around a position, half-open; None where there is none."""
    if not flags[at]:
        return None
    before, after = np.flatnonzero(~flags[:at]), np.flatnonzero(~flags[at:])
    first = int(before[-1]) + 1 if len(before) else 0
    return first, at + int(after[0]) if len(after) else len(flags)


def _cut_off(mask: np.ndarray, tissue: np.ndarray, step: int, drawn: Iterable[Box]) -> bool:
    """Cut what is no tissue around text beside the tissue out of a mask; return if there is such.

    What lies inside the tissue, a cyst with a word in it, stays: it is a person's to look at.
    """
    height, width = mask.shape
    inside = np.repeat(np.repeat(tissue, step, axis=0), step, axis=1)[:height, :width]
    boxes = [(slice(y0, y1), slice(x0, x1)) for x0, y0, x1, y1 in drawn]
    beside = [box for box in boxes if inside[box].size and inside[box].mean() < 0.5]
    if any(mask[box].any() for box in beside):
        labels, _ = ndimage.label(mask & ~inside, structure=np.ones((3, 3)))
        found = np.unique(np.concatenate([labels[box].ravel() for box in beside]))
        mask &= ~np.isin(labels, found[found > 0])
    return bool(beside)


def _confidence(textured: np.ndarray, areas: np.ndarray, mask: np.ndarray) -> float:
    """Say how much the areas look like a sector: large, solid, and most of what is textured."""
    share = float(areas.mean())
    solidity = float(areas.sum() / max(mask.sum(), 1))
    closed = shrink(grow(textured, 7), 7)
    outside = shrink(closed, 15) & ~mask  # lettering does not survive, tissue does
    left_out = float(outside.sum() / max(areas.sum(), 1))
    return min(_ramp(share, 0.02, 0.10), _ramp(solidity, 0.4, 0.7), 1 - _ramp(left_out, 0.05, 0.3))


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
