"""Frames of an opened file, whatever its container: counted, chosen, decoded one at a time.

Every reader (still images, DICOM, video, volumes) turns a file into a :class:`Clip`. A still image
is a clip of one frame.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from echostill.platform.config import Config
from echostill.platform.imaging.header import DicomHeader
from echostill.platform.imaging.images import DecodeError, luminance, resize_longest

MOTION_SIDE = 64  # frames are compared at this size: speckle averages out, organs that move do not
_BLACK = 4 / 255  # of a display's black; what is darker in both frames says nothing about motion


@dataclass(frozen=True)
class Limits:
    """How much one file may ask for, whatever it claims to hold."""

    max_pixels: float = 50_000_000  # of one frame
    max_frames: int = 100_000
    max_bytes: int = 4 * 2**30  # read or unpacked into memory at once


@dataclass(frozen=True)
class Frame:
    """One frame: uint8 ``pixels`` (H, W) or (H, W, 3), or the ``error`` that kept it back."""

    index: int
    pixels: np.ndarray | None
    error: DecodeError | None = None


@dataclass(frozen=True)
class Clip:
    """An opened file.

    Attributes:
        frames: Frames that the file holds, at least 1.
        decode: Decodes the frames of the given ascending numbers, one at a time. A damaged frame
            comes with its error and does not stop those after it; where the file ends early, the
            first missing frame comes with an error and is the last.
        header: Of a DICOM file.
    """

    frames: int
    decode: Callable[[Sequence[int]], Iterator[Frame]]
    header: DicomHeader | None = None


class FrameSampling(Config):
    """Which frames of a cine are kept; at most one of these is set, and none keeps them all."""

    every: int | None = Field(None, description="Every n-th frame, from the first.", ge=1)
    per_clip: int | None = Field(None, description="That many, spread evenly over a cine.", ge=1)
    motion: float | None = Field(
        None,
        description="Frames that differ from the last kept one by more than this mean difference "
        "of brightness (0 to 1, black left out); 0.02 drops a still probe's repeats.",
        gt=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _one_way(self) -> "FrameSampling":
        chosen = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other: keep one")
        return self

    def read(self, clip: Clip) -> Iterator[Frame]:
        """Decode the frames to keep; what is not kept is not decoded, where the file allows it."""
        frames = clip.decode(self._indices(clip.frames))
        return frames if self.motion is None else moving(frames, self.motion)

    def count(self, frames: int) -> int:
        """Return how many of a clip's frames are kept at most; motion may drop some of them."""
        return len(self._indices(frames))

    def _indices(self, frames: int) -> Sequence[int]:
        if self.per_clip is not None:
            return spread(frames, self.per_clip)
        return range(0, frames, self.every or 1)


def spread(count: int, wanted: int) -> Sequence[int]:
    """Return the middles of ``wanted`` equal parts of ``count`` frames, or all if fewer."""
    if wanted >= count:
        return range(count)
    return [(2 * part + 1) * count // (2 * wanted) for part in range(wanted)]


def moving(frames: Iterable[Frame], threshold: float) -> Iterator[Frame]:
    """Keep the first frame, and each that differs from the last kept one; errors pass through."""
    last: np.ndarray | None = None
    for frame in frames:
        if frame.pixels is None:
            yield frame
            continue
        small = luminance(resize_longest(frame.pixels, MOTION_SIDE))
        if last is None or difference(small, last) > threshold:
            last = small
            yield frame


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean absolute difference of brightness over what is not black in both, 0..1.

    The black around the sector is left out, so that a threshold means the same on every scanner.
    Pictures of unlike shape differ by 1.
    """
    if first.shape != second.shape:
        return 1.0
    shown = np.maximum(first, second) > _BLACK
    if not shown.any():
        return 0.0
    return float(np.abs(first - second)[shown].mean(dtype=np.float64))
