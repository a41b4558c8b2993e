"""NIfTI volumes: ``.nii``, ``.nii.gz``, versions 1 and 2."""

import gzip
import math
import struct
import zlib
from typing import BinaryIO

import numpy as np

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.packed import unpacked_head
from echostill.platform.imaging.reader import Reader
from echostill.platform.imaging.volumes.slices import Layout, Seek, volume_clip

_TYPES = {
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
_VALUES = 5  # the axis of a voxel's several values
_COLOURS = (2003, 2004)  # intents: RGB and RGBA vectors
_VECTORS = (1006, 1007)  # displacements and other vectors


def open_nifti(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a NIfTI volume (``.nii``, ``.nii.gz``; versions 1 and 2); slices are read one by one.

    Raises:
        DecodeError: The file is no NIfTI volume with its data, or is too large.
    """
    layout, seek = lay_out(source)
    return volume_clip(source, layout, seek, limits or Limits())


def lay_out(source: SourceFile) -> tuple[Layout, Seek]:
    """Return how a volume's numbers lie in its file, and what finds their beginning.

    Raises:
        DecodeError: As :func:`open_nifti`.
    """
    with source.opened() as file:
        try:
            head = _unpacked(file).read(540)
        except (OSError, EOFError, zlib.error):
            raise DecodeError("is damaged or truncated at its beginning") from None
    layout, start = _nifti_layout(head)

    def seek(file: BinaryIO) -> BinaryIO:
        stream = _unpacked(file)
        stream.read(start)
        return stream

    return layout, seek


def is_nifti(data: bytes) -> bool:
    """Return whether (unpacked) bytes begin as a NIfTI volume."""
    return data[344:348] in (b"n+1\0", b"ni1\0") or data[4:8] in (b"n+2\0", b"ni2\0")


def _nifti_layout(head: bytes) -> tuple[Layout, int]:
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
        (intent,) = struct.unpack_from(f"{order}i", head, 504)
        offset, slope, intercept = struct.unpack_from(f"{order}qdd", head, 168)
    else:
        dim = struct.unpack_from(f"{order}8h", head, 40)
        intent, code = struct.unpack_from(f"{order}hh", head, 68)
        offset, slope, intercept = struct.unpack_from(f"{order}3f", head, 108)
    if not 1 <= dim[0] <= 7:
        raise DecodeError(f"is a NIfTI volume of {dim[0]} dimensions")
    channels = {128: 3, 2304: 4}.get(code, 1)
    if channels > 1:
        kind = "u1"
    elif code in _TYPES:
        kind = _TYPES[code]
    else:
        raise DecodeError(f"is a NIfTI volume of data type {code}, which is not read")
    if slope == 0 or channels > 1 or not math.isfinite(slope):
        slope, intercept = 1.0, 0.0
    shape, axis = dim[1 : dim[0] + 1], 0
    if channels == 1 and len(shape) >= _VALUES and shape[_VALUES - 1] in (3, 4):
        # The fifth axis is that of several values at one place: colours, or directions.
        if kind in ("u1", "u2") or intent in _COLOURS:
            axis = _VALUES - 1
            channels, shape = shape[axis], shape[:axis] + shape[axis + 1 :]
        elif intent in _VECTORS:
            raise DecodeError("is a NIfTI volume of vectors (its intent), which are no pictures")
    layout = Layout(shape, np.dtype(order + kind), channels, slope, intercept, axis)
    if not 0 <= offset < 2**31:
        raise DecodeError(f"is a NIfTI volume whose data begins at byte {offset}")
    return layout, int(offset)


def _unpacked(file: BinaryIO) -> BinaryIO:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[return-value]


def _sniff(head: bytes) -> bool:
    return is_nifti(unpacked_head(head))


READER = Reader(
    name="nifti",
    suffixes=(".nii", ".nii.gz"),
    sniff=_sniff,
    open=open_nifti,
    title="NIfTI (`.nii`, `.nii.gz`, versions 1 and 2)",
    reads="integers, floats, RGB (also as the fifth axis)",
    notes="slices along the last axis or axes, scaled by the range of the volume; orientation "
    "fields are not applied; headers with their data in another file are not supported",
)
