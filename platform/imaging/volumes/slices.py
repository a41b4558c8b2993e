"""Volumes as clips: the slices along the last axis, or axes.

A volume of (x, y, z) gives z pictures, of (x, y, z, t) z times t, z first. Rows of a picture are y
and its columns x, as the file stores them. Values that are not bytes are scaled by the whole
volume's range, so that slices stay comparable.
"""

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.images import (
    DecodeError,
    NoImageError,
    check_size,
    typical_range,
)
from echostill.platform.imaging.labels import MASK, describe_labels, is_label_map

_BLOCK = 2**20
Seek = Callable[[BinaryIO], BinaryIO]
Turn = Callable[[np.ndarray], np.ndarray]


class Layout:
    """How a volume's numbers lie in its file: the first axis runs fastest.

    Attributes:
        width, height: Of a slice.
        slices: Number of slices.
        inner: Slices that lie together before the next channel's, where channels lie apart.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        channels: int = 1,
        slope: float = 1.0,
        intercept: float = 0.0,
        channel_axis: int = 0,
    ) -> None:
        """Check a layout.

        Args:
            shape: Sizes of the axes, without that of the channels.
            dtype: Of the numbers.
            channels: 1 of grey, 3 of colours, 4 with one more that is ignored.
            slope: Factor of the stored numbers.
            intercept: Added to them.
            channel_axis: Which axis of the file the channels are: 0 pixel by pixel, otherwise after
                that many axes of ``shape``.

        Raises:
            DecodeError: It is not one of pictures that are read.
        """
        if len(shape) < 2 or min(shape, default=0) < 1:
            raise DecodeError(
                f"is a volume of shape {shape}: at least two sizes above 0 are needed"
            )
        if channels not in (1, 3, 4) or channel_axis == 1:
            raise DecodeError(f"is a volume of {channels} channels, which is not read")
        if dtype.kind not in "iuf":
            raise DecodeError(f"is a volume of type {dtype}, which is not read")
        self.width, self.height = shape[0], shape[1]
        self.slices = math.prod(shape[2:])
        self.dtype, self.channels = dtype, channels
        self.slope, self.intercept = slope, intercept
        self._apart = channels > 1 and channel_axis > 0
        self.inner = math.prod(shape[2:channel_axis]) if self._apart else 1
        self._plane = self.width * self.height * dtype.itemsize

    @property
    def is_bytes(self) -> bool:
        """Whether the values are a picture's already."""
        return self.dtype == np.uint8 and (self.slope, self.intercept) == (1.0, 0.0)

    @property
    def streams(self) -> int:
        """Number of places in the file that are read side by side: one for each channel apart."""
        return self.channels if self._apart else 1

    @property
    def piece(self) -> int:
        """Bytes of a slice that lie together."""
        return self._plane if self._apart else self._plane * self.channels

    def stored(self, data: bytes) -> np.ndarray:
        """Return a slice's numbers, (H, W) or (H, W, 3)."""
        flat = np.frombuffer(data, self.dtype)
        if self._apart:
            values = flat.reshape(self.channels, self.height, self.width).transpose(1, 2, 0)
        else:
            values = flat.reshape(self.height, self.width, self.channels)
        return values[..., 0] if self.channels == 1 else values[..., :3]

    def values(self, data: bytes) -> np.ndarray:
        """Return a slice's values: the stored numbers, rescaled where they are no bytes."""
        values = self.stored(data)
        if self.is_bytes:
            return values
        rescaled: np.ndarray = values.astype(np.float64) * self.slope + self.intercept
        return rescaled


def volume_clip(
    source: SourceFile, layout: Layout, seek: Seek, limits: Limits, turn: Turn | None = None
) -> Clip:
    """Return the slices of a volume, read one by one.

    Args:
        source: The file.
        layout: How its numbers lie.
        seek: Returns the stream of the numbers, from the opened file.
        limits: What one file may ask for.
        turn: Turns a slice as it should be seen.

    Raises:
        DecodeError: The volume is too large, holds no finite value, or is a label map.
    """
    check_size(layout.width, layout.height, limits.max_pixels)
    if layout.slices > limits.max_frames:
        raise DecodeError(
            f"holds {layout.slices} slices, more than allowed (max_frames={limits.max_frames})"
        )
    if layout.channels == 1:
        _refuse_labels(source, layout, seek)
    low, high = (0.0, 255.0) if layout.is_bytes else _range(source, layout, seek)

    def decode(indices: Sequence[int]) -> Iterator[Frame]:
        wanted = set(indices)
        for index, data in enumerate(_slices(source, layout, seek)):
            if isinstance(data, DecodeError):
                yield Frame(index, None, data)
            elif index in wanted:
                values = layout.values(data)
                yield _scaled(index, values if turn is None else turn(values), low, high)

    return Clip(layout.slices, decode)


def stored_slices(
    source: SourceFile, layout: Layout, seek: Seek, limits: Limits, turn: Turn | None = None
) -> np.ndarray:
    """Return all slices with their numbers as stored, (slices, H, W): a label map is read so.

    Raises:
        DecodeError: The volume has colours, is too large, or its file ends early.
    """
    if layout.channels != 1:
        raise DecodeError(f"is a volume of {layout.channels} channels, where labels are expected")
    check_size(layout.width, layout.height * layout.slices, limits.max_bytes)
    slices = []
    for data in _slices(source, layout, seek):
        if isinstance(data, DecodeError):
            raise data
        values = layout.stored(data)
        slices.append(values if turn is None else turn(values))
    return np.stack(slices)


def _scaled(index: int, values: np.ndarray, low: float, high: float) -> Frame:
    if values.dtype == np.uint8:
        return Frame(index, np.array(values, order="C"))
    if not np.isfinite(values).any():
        return Frame(index, None, DecodeError("holds no finite value"))
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    scale = 255 / (high - low) if high > low else 0.0
    shown = np.rint((values - low) * scale).clip(0, 255)
    return Frame(index, shown.astype(np.uint8, order="C"))


def _range(source: SourceFile, layout: Layout, seek: Seek) -> tuple[float, float]:
    """Return the least and the largest finite value, but for outliers, of the slices there are."""
    low, high = math.inf, -math.inf
    for data in _slices(source, layout, seek):
        if isinstance(data, DecodeError):
            break
        values = layout.values(data)
        if np.isfinite(values).any():
            least, largest = typical_range(values)
            low, high = min(low, least), max(high, largest)
    if low > high:
        raise DecodeError("is a volume without a finite value")
    return low, high


def _refuse_labels(source: SourceFile, layout: Layout, seek: Seek) -> None:
    """Refuse a volume of labels; the first slice that is a picture says that it is none."""
    labelled = None
    for data in _slices(source, layout, seek):
        if isinstance(data, DecodeError):
            break
        values = layout.stored(data)
        if values.dtype.kind == "f":
            with np.errstate(invalid="ignore"):
                numbers = values.astype(np.int64)
            if not np.array_equal(numbers, values):
                return
            values = numbers
        if values.min() == values.max():
            continue
        if not is_label_map(values, specks=True):
            return
        labelled = values
    if labelled is not None:
        raise NoImageError(describe_labels(labelled), MASK)


def _slices(source: SourceFile, layout: Layout, seek: Seek) -> Iterator[bytes | DecodeError]:
    """Yield each slice's bytes; where they end early, an error as the last."""
    with contextlib.ExitStack() as opened:
        try:
            streams = []
            for number in range(layout.streams):
                streams.append(seek(opened.enter_context(source.opened())))
                _skip(streams[-1], number * layout.inner * layout.piece)
        except (OSError, EOFError, zlib.error):
            yield DecodeError("is damaged or truncated at its beginning")
            return
        for index in range(layout.slices):
            try:
                if index and index % layout.inner == 0:
                    for stream in streams:
                        _skip(stream, (layout.streams - 1) * layout.inner * layout.piece)
                parts = [stream.read(layout.piece) for stream in streams]
            except (OSError, EOFError, zlib.error):
                yield DecodeError(f"is damaged or truncated at slice {index}")
                return
            if any(len(part) < layout.piece for part in parts):
                said = f"holds {index} of the {layout.slices} slices that it states"
                yield DecodeError(said)
                return
            yield b"".join(parts)


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0 and (block := stream.read(min(count, _BLOCK))):
        count -= len(block)
