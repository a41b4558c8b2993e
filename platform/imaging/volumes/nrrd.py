"""NRRD volumes with their data in the same file: ``.nrrd``, also sequences (``.seq.nrrd``)."""

import bz2
import gzip
import math
from typing import Any, BinaryIO

import numpy as np

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.reader import Reader
from echostill.platform.imaging.volumes.slices import Layout, Seek, volume_clip

_HEADER = 16 * 2**20
_LINE = 2**16
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_CODES = {name: code for code, names in _TYPES.items() for name in names}
_COLOURS = ("rgb-color", "rgba-color", "3-color", "4-color", "vector", "3-vector", "4-vector")


def open_nrrd(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open an NRRD volume; slices are read one by one.

    An axis of colours may be any but the second. Where the frames are the fastest axis, as in some
    sequences, the file is read whole.

    Raises:
        DecodeError: The file is no NRRD volume with its data, or is too large.
    """
    limits = limits or Limits()
    with source.opened() as file:
        fields, start = _header(file)
    try:
        sizes = tuple(int(size) for size in fields["sizes"].split())
        order = ">" if fields.get("endian", "little").lower() == "big" else "<"
        dtype = np.dtype(order + _CODES[fields["type"].lower()])
        kinds = [kind.lower() for kind in fields.get("kinds", "").split()]
        byte_skip = int(fields.get("byte skip", fields.get("byteskip", "0")))
        line_skip = int(fields.get("line skip", fields.get("lineskip", "0")))
    except (KeyError, ValueError) as error:
        raise DecodeError(f"is an NRRD volume whose header is wrong or not read: {error}") from None
    if "data file" in fields or "datafile" in fields:
        raise DecodeError("is an NRRD header whose data lies in another file: convert it to .nrrd")
    encoding = fields.get("encoding", "raw").lower()
    if encoding not in ("raw", "gz", "gzip", "bz2", "bzip2"):
        raise DecodeError(f"is an NRRD volume in the encoding '{encoding}', which is not read")

    def seek(file: BinaryIO) -> BinaryIO:
        file.seek(start)
        for _ in range(line_skip):
            file.readline()
        if byte_skip == -1 and encoding == "raw":
            file.seek(-math.prod(sizes) * dtype.itemsize, 2)
            return file
        stream: BinaryIO = file
        if encoding.startswith("gz"):
            stream = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
        elif encoding.startswith("bz"):
            stream = bz2.BZ2File(file)  # type: ignore[assignment]
        stream.read(max(byte_skip, 0))
        return stream

    if kinds[:1] == ["list"] and len(sizes) > 2:
        return _frames_first(source, sizes, dtype, seek, limits)
    axis = _colour_axis(sizes, kinds)
    if axis is None:
        return volume_clip(source, Layout(sizes, dtype), seek, limits)
    shape = sizes[:axis] + sizes[axis + 1 :]
    layout = Layout(shape, dtype, sizes[axis], channel_axis=axis)
    return volume_clip(source, layout, seek, limits)


def _colour_axis(sizes: tuple[int, ...], kinds: list[str]) -> int | None:
    for axis, (size, kind) in enumerate(zip(sizes, kinds, strict=False)):
        if kind in _COLOURS and size in (3, 4):
            return axis
    # Three or four columns are no picture, with or without a word about them.
    return 0 if len(sizes) > 2 and sizes[0] in (3, 4) else None


def _frames_first(
    source: SourceFile, sizes: tuple[int, ...], dtype: np.dtype[Any], seek: Seek, limits: Limits
) -> Clip:
    """Read a volume whose fastest axis are its frames, and turn that axis round."""
    size = math.prod(sizes) * dtype.itemsize
    if size > limits.max_bytes:
        raise DecodeError(f"unpacks to more bytes than allowed (max_bytes={limits.max_bytes})")
    with source.opened() as file:
        data = seek(file).read(size)
    if len(data) < size:
        raise DecodeError(f"is damaged or truncated: it holds {len(data)} of {size} bytes")
    values = np.frombuffer(data, dtype).reshape(sizes[::-1])
    turned = SourceFile(source.name, data=np.moveaxis(values, -1, 0).tobytes())
    layout = Layout((*sizes[1:], sizes[0]), dtype)
    return volume_clip(turned, layout, lambda file: file, limits)


def _header(file: BinaryIO) -> tuple[dict[str, str], int]:
    """Read the header's lines up to the empty one, and where the data begins behind it."""
    fields: dict[str, str] = {}
    if not file.readline(_LINE).startswith(b"NRRD000"):
        raise DecodeError("is no NRRD volume: it does not begin as one")
    while file.tell() < _HEADER:
        line = file.readline(_LINE)
        text = line.decode("latin-1").strip()
        if not line:
            break
        if not text:
            return fields, file.tell()
        name, separator, value = text.partition(":")
        if separator and not text.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    raise DecodeError("is no NRRD volume with its data: its header does not end")


READER = Reader(
    name="nrrd",
    suffixes=(".nrrd", ".nhdr"),
    sniff=lambda head: head.startswith(b"NRRD000"),
    open=open_nrrd,
    title="NRRD (`.nrrd`)",
    reads="integers, floats, RGB; raw, gzip, bzip2",
    notes="as NIfTI",
)
