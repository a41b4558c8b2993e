"""Where in a frame the ultrasound is: the fan or rectangle of tissue, without what is drawn around.

Three sources of knowledge, the surest first: the regions that a DICOM file declares, what moves
against what stands still in a cine, and in a still the largest connected area with the texture of
tissue. All give a mask, how sure it is (0..1), and the method that found it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echostill.curation.deidentification.brightness import Box, brightest
from echostill.curation.deidentification.outline import find_outline
from echostill.platform.imaging.header import Region

_FRAMES = 4  # of a cine, below which motion says nothing
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
        lettering: Boxes of what may be text; on an even ground it is no tissue.
    """
    motion = frame if isinstance(frame, Motion) else None
    value = frame.highest if isinstance(frame, Motion) else brightest(frame)
    change = motion.change if motion is not None and motion.frames >= _FRAMES else None
    wanted = [region for region in regions if _shows_tissue(region)]
    if wanted and all(_fits(region, value.shape) for region in regions):
        return _declared(value, change, wanted, lettering)
    found = find_outline(value, change, lettering)
    return Sector(found.mask, found.confidence, found.method)


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
        found = find_outline(value[window], None if change is None else change[window], inside)
        # An outline much smaller than its region may have lost dark tissue: then the rectangle,
        # unless there is text beside the tissue in it.
        if found.confidence >= 0.5 and (found.mask.mean() >= 0.25 or found.text_beside):
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
