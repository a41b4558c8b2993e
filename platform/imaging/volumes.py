"""Volumes (NIfTI, MetaImage) as clips: the slices along the last axis, or axes.

A volume of (x, y, z) gives z pictures, of (x, y, z, t) z times t, z first. Rows of a picture are y
and its columns x, as the file stores them; orientation fields are not applied. Values that are not
bytes are scaled by the whole volume's range, so that slices stay comparable.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Frame, Limits
from echostill.platform.imaging.images import DecodeError, check_size

_BLOCK = 2**20
_NIFTI_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def open_nifti(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a NIfTI volume (``.nii``, ``.nii.gz``; versions 1 and 2); slices are read one by one.

    Raises:
        DecodeError: The file is no NIfTI volume with its data, or is too large.
    """
    limits = limits or Limits()
    with source.opened() as file:
        try:
            head = _unpacked(file).read(540)
        except (OSError, EOFError, zlib.error) as error:
            raise DecodeError(f"is damaged or truncated: {error}") from None
    layout, start = _nifti_layout(head)

    def seek(file: BinaryIO) -> BinaryIO:
        stream = _unpacked(file)
        stream.read(start)
        return stream

    return _clip(source, layout, seek, limits)


def is_nifti(data: bytes) -> bool:
    """Return whether (unpacked) bytes begin as a NIfTI volume."""
    return data[344:348] in (b"n+1\0", b"ni1\0") or data[4:8] in (b"n+2\0", b"ni2\0")


def _nifti_layout(head: bytes) -> tuple["_Layout", int]:
    """Read the header fields that say how the numbers lie, and where they begin."""
    if not is_nifti(head) or len(head) < 352:
        raise DecodeError("is no readable NIfTI volume: its header is missing or cut off")
    second = head[4:7] in (b"n+2", b"ni2")
    order = "<" if head[:4] in (b"\x5c\x01\0\0", b"\x1c\x02\0\0") else ">"
    if (head[4:8] if second else head[344:348]).startswith(b"ni"):
        raise DecodeError("is a NIfTI header whose data lies in another file: convert it to .nii")
    if second:
        dim = struct.unpack_from(f"{order}8q", head, 16)
        (code,) = struct.unpack_from(f"{order}h", head, 12)
        offset, slope, intercept = struct.unpack_from(f"{order}qdd", head, 168)
    else:
        dim = struct.unpack_from(f"{order}8h", head, 40)
        (code,) = struct.unpack_from(f"{order}h", head, 70)
        offset, slope, intercept = struct.unpack_from(f"{order}3f", head, 108)
    if not 1 <= dim[0] <= 7:
        raise DecodeError(f"is a NIfTI volume of {dim[0]} dimensions")
    channels = {128: 3, 2304: 4}.get(code, 1)
    if channels > 1:
        kind = "u1"
    elif code in _NIFTI_TYPES:
        kind = _NIFTI_TYPES[code]
    else:
        raise DecodeError(f"is a NIfTI volume of data type {code}, which is not read")
    if slope == 0 or channels > 1 or not math.isfinite(slope):
        slope, intercept = 1.0, 0.0
    layout = _Layout(dim[1 : dim[0] + 1], np.dtype(order + kind), channels, slope, intercept)
    if not 0 <= offset < 2**31:
        raise DecodeError(f"is a NIfTI volume whose data begins at byte {offset}")
    return layout, int(offset)


def open_meta_image(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a MetaImage volume with its data in the same file (``.mha``); slices one by one.

    Raises:
        DecodeError: The header is not that of a MetaImage, its data lies in another file, or it is
            too large.
    """
    limits = limits or Limits()
    with source.opened() as file:
        fields, start = _meta_header(file)
    try:
        shape = tuple(int(size) for size in fields["DimSize"].split())
        order = ">" if _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<"
        dtype = np.dtype(order + _META_TYPES[fields["ElementType"]])
        channels = int(fields.get("ElementNumberOfChannels", "1"))
    except (KeyError, ValueError) as error:
        raise DecodeError(f"is a MetaImage whose header is wrong or not read: {error}") from None
    where = fields.get("ElementDataFile", "")
    if where != "LOCAL":
        raise DecodeError(
            "is a MetaImage header whose data lies in another file: convert it to .mha"
        )
    packed = _is_true(fields, "CompressedData")

    def seek(file: BinaryIO) -> BinaryIO:
        file.seek(start)
        return _Inflated(file) if packed else file  # type: ignore[return-value]

    return _clip(source, _Layout(shape, dtype, channels), seek, limits)


class _Layout:
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
        return self.dtype == np.uint8 and (self.slope, self.intercept) == (1.0, 0.0)

    def values(self, data: bytes) -> np.ndarray:
        """Return a slice's values, (H, W) or (H, W, 3)."""
        shape = (self.height, self.width, self.channels)
        values = np.frombuffer(data, self.dtype).reshape(shape)[..., :3]
        if not self.is_bytes:
            values = values.astype(np.float64) * self.slope + self.intercept
        return values[..., 0] if self.channels == 1 else values


def _clip(
    source: SourceFile, layout: _Layout, seek: Callable[[BinaryIO], BinaryIO], limits: Limits
) -> Clip:
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
    source: SourceFile, layout: _Layout, seek: Callable[[BinaryIO], BinaryIO]
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


def _pieces(stream: BinaryIO, layout: _Layout) -> Iterator[bytes | DecodeError]:
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


def _unpacked(file: BinaryIO) -> BinaryIO:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[return-value]


def _meta_header(file: BinaryIO) -> tuple[dict[str, str], int]:
    """Read the header's lines, and where the data begins behind them."""
    fields: dict[str, str] = {}
    for _ in range(200):
        line = file.readline(4096)
        name, separator, value = line.decode("latin-1").partition("=")
        if not line or not separator:
            break
        fields[name.strip()] = value.strip()
        if name.strip() == "ElementDataFile":
            return fields, file.tell()
    raise DecodeError("is no MetaImage: its header does not end with ElementDataFile")


def _is_true(fields: dict[str, str], *names: str) -> bool:
    return any(fields.get(name, "").lower() in ("true", "1") for name in names)


class _Inflated:
    """A zlib stream read piece by piece, never unpacked whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._inflate = file, zlib.decompressobj()

    def read(self, size: int) -> bytes:
        pieces: list[bytes] = []
        while size > 0 and not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(_BLOCK)
            pieces.append(self._inflate.decompress(packed, size))
            size -= len(pieces[-1])
            if not packed and not pieces[-1]:
                break
        return b"".join(pieces)
