"""MetaImage volumes with their data in the same file: ``.mha``.

Tracked sweeps (PLUS, ``.igs.mha``) are such files, with lines on each frame in the header and the
direction in which the image was stored; they are shown with the marked side left and the probe up.
"""

import zlib
from typing import BinaryIO

import numpy as np

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Clip, Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.reader import Reader
from echostill.platform.imaging.volumes.slices import Layout, Seek, Turn, volume_clip

_BLOCK = 2**20
_HEADER = 64 * 2**20  # bytes: ten thousand frames of a tracked sweep have a few
_LINE = 2**16
_TYPES = {
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


def open_meta_image(source: SourceFile, limits: Limits | None = None) -> Clip:
    """Open a MetaImage volume with its data in the same file (``.mha``); slices one by one.

    Raises:
        DecodeError: The header is not that of a MetaImage, its data lies in another file, or it is
            too large.
    """
    layout, seek, turn = lay_out(source)
    return volume_clip(source, layout, seek, limits or Limits(), turn)


def lay_out(source: SourceFile) -> tuple[Layout, Seek, Turn | None]:
    """Return how a volume's numbers lie, what finds their beginning, and what turns a slice.

    Raises:
        DecodeError: As :func:`open_meta_image`.
    """
    with source.opened() as file:
        fields, start = _header(file)
    try:
        shape = tuple(int(size) for size in fields["DimSize"].split())
        order = ">" if _is_true(fields, "BinaryDataByteOrderMSB", "ElementByteOrderMSB") else "<"
        dtype = np.dtype(order + _TYPES[fields["ElementType"]])
        channels = int(fields.get("ElementNumberOfChannels", "1"))
    except (KeyError, ValueError) as error:
        raise DecodeError(f"is a MetaImage whose header is wrong or not read: {error}") from None
    where = fields.get("ElementDataFile", "")
    if where.upper() != "LOCAL":
        raise DecodeError(
            "is a MetaImage header whose data lies in another file: convert it to .mha"
        )
    if fields.get("BinaryData", "True").lower() in ("false", "0"):
        raise DecodeError("is a MetaImage whose numbers are text, which is not read")
    packed = _is_true(fields, "CompressedData")

    def seek(file: BinaryIO) -> BinaryIO:
        file.seek(start)
        return _Inflated(file) if packed else file  # type: ignore[return-value]

    turn = turn_of(fields.get("UltrasoundImageOrientation", ""))
    return Layout(shape, dtype, channels), seek, turn


def turn_of(orientation: str) -> Turn | None:
    """Return what turns a picture of a PLUS orientation to MF; None where nothing needs to.

    Args:
        orientation: Directions of the first two axes (and others): M or U, to the marked side or
            from it, and F or N, away from the probe or to it.
    """
    first, second, *_ = list(orientation.upper().ljust(2))
    swapped = first in "FN" and second in "MU"
    across, along = (second, first) if swapped else (first, second)
    if across not in "MU" or along not in "FN" or (across, along, swapped) == ("M", "F", False):
        return None

    def turn(pixels: np.ndarray) -> np.ndarray:
        pixels = pixels.swapaxes(0, 1) if swapped else pixels
        pixels = pixels[:, ::-1] if across == "U" else pixels
        return pixels[::-1] if along == "N" else pixels

    return turn


def _header(file: BinaryIO) -> tuple[dict[str, str], int]:
    """Read the header's lines, and where the data begins behind them."""
    fields: dict[str, str] = {}
    while file.tell() < _HEADER:
        line = file.readline(_LINE)
        name, separator, value = line.decode("latin-1").partition("=")
        if not line or not separator:
            break
        if name.startswith("Seq_Frame"):
            continue  # where the probe was at each frame
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


def _sniff(head: bytes) -> bool:
    # The last line of a long header lies beyond the beginning.
    return b"DimSize" in head and (b"ElementDataFile" in head or b"ElementType" in head)


READER = Reader(
    name="meta",
    suffixes=(".mha", ".mhd"),
    sniff=_sniff,
    open=open_meta_image,
    title="MetaImage (`.mha`, also tracked `.igs.mha`)",
    reads="integers, floats, RGB",
    notes="as NIfTI; `UltrasoundImageOrientation` is applied",
)
