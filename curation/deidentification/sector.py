"""Where in a frame the ultrasound is: the fan or rectangle of tissue, without what is drawn around.

Three sources of knowledge, the surest first: the regions that a DICOM file declares, what moves
against what stands still in a cine, and in a still the largest connected area with the texture of
tissue. All give a mask, how sure it is (0..1), and the method that found it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial import ConvexHull

from echostill.curation.deidentification.filters import grow, shrink
from echostill.platform.imaging.header import Region

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the last two exclusive

WORKING_SIDE = 256  # a sector's outline is coarse: finding it at this size is quick and steadier
_TEXTURE = 4  # grey levels between neighbours that tissue exceeds and a drawn background does not
_BLACK = 3  # grey levels that compression makes of black
_MOTION = 6  # grey levels over time that noise of compression stays below, mostly
_WHOLE = 0.93  # a sector above this share of the frame has no border worth cutting
_FRAMES = 4  # of a cine, below which motion says nothing
_SMALL = 32  # frames below this side have no room for borders beside the sector
_TISSUE = frozenset({1, 2, 3})  # spatial formats 2D, M-mode, spectral (PS3.3 C.8.5.5.1.1)
_DRAWN = frozenset(
    range(10, 20)
)  # data types ECG, pulse, phonocardiogram, grey and colour bar, ...


@dataclass(frozen=True)
class Sector:
    """Where the ultrasound is.

    Attributes:
        mask: (H, W) bool, True inside.
        confidence: 0 (nothing found) to 1.
        method: ``declared``, ``motion``, ``texture``, ``whole`` or ``none``; ``declared+texture``
            and ``declared+motion`` where an outline was found inside a declared region.
    """

    mask: np.ndarray
    confidence: float
    method: str


class Motion:
    """What a cine's frames have in common, gathered frame by frame in memory for three frames."""

    def __init__(self) -> None:
        self.frames = 0
        self._low = self._high = np.zeros((0, 0), dtype=np.uint8)

    def add(self, frame: np.ndarray) -> None:
        """Take one frame, uint8 (H, W) or (H, W, 3).

        Raises:
            ValueError: The frame has another size than those before it.
        """
        value = brightest(frame)
        if self.frames == 0:
            self._low, self._high = value.copy(), value.copy()
        elif value.shape != self._low.shape:
            raise ValueError(f"a frame of {value.shape} among frames of {self._low.shape}")
        else:
            np.minimum(self._low, value, out=self._low)
            np.maximum(self._high, value, out=self._high)
        self.frames += 1

    @property
    def highest(self) -> np.ndarray:
        """(H, W) uint8: the largest value that each pixel ever had."""
        return self._high

    @property
    def lowest(self) -> np.ndarray:
        """(H, W) uint8: the smallest; a bright overlay stays, what moves fades."""
        return self._low

    @property
    def change(self) -> np.ndarray:
        """(H, W) uint8: how much each pixel ever changed."""
        return self._high - self._low


def find_sector(
    frame: np.ndarray | Motion, regions: Sequence[Region] = (), lettering: Sequence[Box] = ()
) -> Sector:
    """Find the sector of a still (its pixels) or of a cine (its motion).

    Args:
        frame: uint8 (H, W) or (H, W, 3), or the gathered motion of a cine's frames.
        regions: The regions that the file declares, if any. Regions that do not fit the frame are
            not believed: somebody has resized or cropped it since.
        lettering: Boxes of what is taken for text; it is no tissue.
    """
    motion = frame if isinstance(frame, Motion) else None
    value = frame.highest if isinstance(frame, Motion) else brightest(frame)
    change = motion.change if motion is not None and motion.frames >= _FRAMES else None
    wanted = [region for region in regions if _shows_tissue(region)]
    if wanted and all(_fits(region, value.shape) for region in regions):
        return _declared(value, change, wanted, lettering)
    return _outline(value, change, lettering)


def brightest(frame: np.ndarray) -> np.ndarray:
    """Return each pixel's largest channel, (H, W): coloured text is as bright as white."""
    if frame.ndim == 2:
        return frame
    return np.maximum(np.maximum(frame[..., 0], frame[..., 1]), frame[..., 2])


def _shows_tissue(region: Region) -> bool:
    return region.spatial_format in _TISSUE and region.data_type not in _DRAWN


def _fits(region: Region, shape: tuple[int, ...]) -> bool:
    height, width = shape[:2]
    ordered = 0 <= region.left < region.right and 0 <= region.top < region.bottom
    # Writers disagree on whether the last pixel belongs to a region, hence the two.
    return ordered and region.right <= width + 1 and region.bottom <= height + 1


def _declared(
    value: np.ndarray,
    change: np.ndarray | None,
    regions: list[Region],
    lettering: Sequence[Box],
) -> Sector:
    """Keep the declared rectangles, and of each the outline that is found in it.

    A region is a rectangle even where the sector is a fan: scanners write into its corners.
    """
    mask = np.zeros(value.shape, dtype=bool)
    refined = set()
    for region in regions:
        window = (slice(region.top, region.bottom + 1), slice(region.left, region.right + 1))
        inside = [_shift(box, region) for box in lettering]
        found = _outline(value[window], None if change is None else change[window], inside)
        # An outline much smaller than its region may have lost dark tissue: then the rectangle.
        if found.confidence >= 0.5 and found.mask.mean() >= 0.25:
            mask[window] |= found.mask
            refined.add(found.method)
        else:
            mask[window] = True
    refined -= {"whole"}
    return Sector(mask, 1.0, "+".join(["declared", *sorted(refined)]))


def _shift(box: Box, region: Region) -> Box:
    """Return a box in a region's own coordinates."""
    x0, y0, x1, y1 = box
    return (
        max(x0 - region.left, 0), max(y0 - region.top, 0),
        max(x1 - region.left, 0), max(y1 - region.top, 0),
    )  # fmt: skip


def _outline(value: np.ndarray, change: np.ndarray | None, lettering: Sequence[Box]) -> Sector:
    """Find tissue by texture, and in cines by motion, as the convex outline of large areas."""
    whole = np.ones(value.shape, dtype=bool)
    if min(value.shape) < _SMALL:
        return Sector(whole, 1.0, "whole")
    step = -(-max(value.shape) // WORKING_SIDE)
    textured, method = _texture(value, step), "texture"
    _erase(textured, lettering, step)
    if change is not None:
        moving = textured & (_blocks(change, step, np.minimum) > _MOTION)
        # A clip in which little moves says nothing about what is an overlay.
        if moving.sum() >= 0.3 * sum(int(area.sum()) for area in _large(textured)):
            textured, method = moving, "motion"
    areas = _large(textured)
    if not areas:
        return Sector(np.zeros(value.shape, dtype=bool), 0.0, "none")
    mask = np.logical_or.reduce([_hull(area, step, value.shape) for area in areas])
    small = _blocks(mask, step, np.maximum)
    confidence = _confidence(textured, np.logical_or.reduce(areas), small)
    if mask.mean() > _WHOLE:
        return Sector(whole, confidence, "whole")
    return Sector(mask, confidence, method)


def _texture(value: np.ndarray, step: int) -> np.ndarray:
    """Return which blocks of step x step pixels vary, in themselves or against their neighbours.

    Black that varies a little is compression, grey that does is dark or smooth tissue; what a
    program draws is even.
    """
    high, low = value, value
    if step > 1:
        high, low = _blocks(value, step, np.maximum), _blocks(value, step, np.minimum)
    low = shrink(low, 3)
    spread = grow(high, 3) - low
    textured: np.ndarray = (spread > _TEXTURE) | ((spread > 1) & (low > _BLACK))
    return textured


def _erase(textured: np.ndarray, lettering: Sequence[Box], step: int) -> None:
    """Take lettering on an even ground out of a map of texture.

    Lettering in tissue stays, and so does tissue that is mistaken for lettering: it must not be cut
    out of the sector, and the text in the sector is what a person is asked about.
    """
    drawn, rims = np.zeros_like(textured), []
    for x0, y0, x1, y1 in lettering:
        box = slice(y0 // step, -(-y1 // step)), slice(x0 // step, -(-x1 // step))
        drawn[box] = True
        # A line of text has dots and dashes beyond the pieces that were found.
        margin = max((y1 - y0) // (2 * step), 1)
        rims.append(tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in box))
    for rim in rims:
        ground = textured[rim][~drawn[rim]]
        if ground.size == 0 or ground.mean() < 0.5:
            textured[rim] = False


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
    # One block less comes back: what borders on tissue differs from its neighbours as tissue does.
    opened = grow(shrink(closed, 9), 7)
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


def _confidence(textured: np.ndarray, areas: np.ndarray, mask: np.ndarray) -> float:
    """Say how much the areas look like a sector: large, solid, and most of what is textured."""
    share = float(areas.mean())
    solidity = float(areas.sum() / max(mask.sum(), 1))
    closed = shrink(grow(textured, 7), 7)
    outside = shrink(closed, 15) & ~mask  # lettering does not survive, tissue does
    left_out = float(outside.sum() / areas.sum())
    return min(_ramp(share, 0.02, 0.10), _ramp(solidity, 0.4, 0.7), 1 - _ramp(left_out, 0.05, 0.3))


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)
