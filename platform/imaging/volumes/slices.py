"""Volumes as clips: the slices along the last axis, or axes.

A volume of (x, y, z) gives z pictures, of (x, y, z, t) z times t, z first. Rows of a picture are y
and its columns x, as the file stores them; orientation fields are not applied. Values that are not
bytes are scaled by the whole volume's range, so that slices stay comparable.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.images import DecodeError, check_size


class Layout:
    """How a volume's numbers lie in its file: x runs fastest, channels faster still."""

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        channels: int,
        slope: float = 1.0,
        intercept: float = 0.0,
    ) -> None:
        if len(shape) < 2 or min(shape, default=0) < 1:
            raise DecodeError(
                f"is a volume of shape {shape}: at least two sizes above 0 are needed"
            )
        if channels not in (1, 3, 4):
            raise DecodeError(f"is a volume of {channels} channels, which is not read")
        if dtype.kind not in "iuf":
            raise DecodeError(f"is a volume of type {dtype}, which is not read")
        self.width, self.height = shape[0], shape[1]
        self.slices = math.prod(shape[2:])
        self.dtype, self.channels = dtype, channels
        self.slope, self.intercept = slope, intercept
        self.bytes = self.width * self.height * channels * dtype.itemsize

    @property
    def is_bytes(self) -> bool:
        """Whether the values are a picture's already."""
        return self.dtype == np.uint8 and (self.slope, self.intercept) == (1.0, 0.0)

    def values(self, data: bytes) -> np.ndarray:
        """Return a slice's values, (H, W) or (H, W, 3)."""
        shape = (self.height, self.width, self.channels)
        values = np.frombuffer(data, self.dtype).reshape(shape)[..., :3]
        if not self.is_bytes:
            values = values.astype(np.float64) * self.slope + self.intercept
        return values[..., 0] if self.channels == 1 else values


def volume_clip(
    source: SourceFile, layout: Layout, seek: Callable[[BinaryIO], BinaryIO], limits: Limits
) -> Clip:
    """Return the slices of a volume, read one by one.

    Args:
        source: The file.
        layout: How its numbers lie.
        seek: Returns the stream of the numbers, from the opened file.
        limits: What one file may ask for.

    Raises:
        DecodeError: The volume is too large, or holds no finite value.
    """
    check_size(layout.width, layout.height, limits.max_pixels)
    if layout.slices > limits.max_frames:
        raise DecodeError(
            f"holds {layout.slices} slices, more than allowed (max_frames={limits.max_frames})"
        )
    low, high = (0.0, 255.0) if layout.is_bytes else _range(source, layout, seek)

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        wanted = set(indices)
        with source.opened() as file:
            for index, data in enumerate(_pieces(seek(file), layout)):
                if isinstance(data, DecodeError):
                    yield Frame(index, None, data)
                elif index in wanted:
                    yield _scaled(index, layout.values(data), low, high)

    return Clip(layout.slices, decode)


def _scaled(index: int, values: np.ndarray, low: float, high: float) -> Frame:
    if values.dtype == np.uint8:
        return Frame(index, np.array(values))
    if not np.isfinite(values).any():
        return Frame(index, None, DecodeError("holds no finite value"))
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scale = 255 / (high - low) if high > low else 0.0
    return Frame(index, np.rint((values - low) * scale).astype(np.uint8))


def _range(
    source: SourceFile, layout: Layout, seek: Callable[[BinaryIO], BinaryIO]
) -> tuple[float, float]:
    """Return the least and the largest finite value of the slices that are there."""
    low, high = math.inf, -math.inf
    with source.opened() as file:
        for data in _pieces(seek(file), layout):
            if isinstance(data, DecodeError):
                break
            values = layout.values(data)
            finite = values[np.isfinite(values)]
            if finite.size:
                low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise DecodeError("is a volume without a finite value")
    return low, high


def _pieces(stream: BinaryIO, layout: Layout) -> Iterator[bytes | DecodeError]:
    """Yield each slice's bytes; where they end early, an error as the last."""
    for index in range(layout.slices):
        try:
            data = stream.read(layout.bytes)
        except (OSError, EOFError, zlib.error) as error:
            yield DecodeError(f"is damaged or truncated at slice {index}: {error}")
            return
        if len(data) < layout.bytes:
            said = f"holds {index} of the {layout.slices} slices that it states"
            yield DecodeError(said)
            return
        yield data
