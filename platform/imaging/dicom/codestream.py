"""What a compressed frame says of itself, read before any decoder believes it.

Its size, since a damaged or forged one makes decoders allocate and compute for minutes; its depth,
its components and its colours, since headers are written once and frames compressed anew: where the
two differ, the frame is what will be decoded.
"""

import struct
from dataclasses import dataclass

from echostill.platform.imaging.images import DecodeError

_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of codestream, then the SIZ segment
_FILE_FORMAT = b"\0\0\0\x0cjP"  # of JPEG 2000, which may hold a profile before the codestream
_CODING, _TILE = 0xFF52, 0xFF90  # markers of JPEG 2000: coding style, start of a tile part
# Start of frame: the JPEG kinds (C0 to CF but for tables and arithmetic conditioning) and JPEG-LS.
_JPEG_LS = 0xF7
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {_JPEG_LS}
_END = b"\xff\xd9"  # of a JPEG, JPEG-LS or JPEG 2000 image
_SCAN = b"\xff\xda"
_RGB_LETTERS = (b"RGB", b"rgb")
_SPIFF_COLOURS = {1: "YBR_FULL", 3: "YBR_FULL", 4: "YBR_FULL", 10: "RGB"}


@dataclass(frozen=True)
class Codestream:
    """What a frame of JPEG, JPEG-LS or JPEG 2000 (also high-throughput) states.

    Attributes:
        kind: ``jpeg``, ``jpeg-ls`` or ``jpeg-2000``.
        process: Marker of a JPEG's kind: 0xC0 baseline, 0xC1 extended, 0xC3 lossless.
        rows, columns: Of the picture.
        components: 1 of a grey picture, 3 of colours.
        precision: Bits of a value.
        colours: ``RGB`` or ``YBR_FULL`` where it says what its components are once decoded, else
            ``""``. JPEG 2000 says so where it transforms colours itself.
        halved: Whether a component is stored at less than the full size.
    """

    kind: str
    process: int
    rows: int
    columns: int
    components: int
    precision: int
    colours: str
    halved: bool


def read_codestream(data: bytes) -> Codestream:
    """Read a compressed frame's own header.

    Raises:
        DecodeError: The frame does not begin as a JPEG, JPEG-LS or JPEG 2000 image.
    """
    start = _start_of_jpeg_2000(data)
    try:
        found = _jpeg_2000(data, start) if start >= 0 else _jpeg(data)
    except (struct.error, IndexError):
        found = None
    if found is None:
        raise DecodeError("cannot be decoded: its compressed data has no readable beginning")
    return found


def bare_codestream(data: bytes) -> bytes:
    """Return a JPEG 2000 frame without the file format around it, which does not belong in DICOM.

    Its boxes say nothing that DICOM's header does not, and damaged ones let readers run in circles.
    """
    start = _start_of_jpeg_2000(data)
    return data[start:] if start > 0 else data


def check_size_inside(found: Codestream, rows: int, columns: int) -> None:
    """Refuse a frame whose own size is not the header's.

    Raises:
        DecodeError: The sizes differ.
    """
    if (found.rows, found.columns) != (rows, columns):
        raise DecodeError(
            f"holds compressed pixels of {found.columns} x {found.rows}, and the header says "
            f"{columns} x {rows}"
        )


def lacks_end(data: bytes) -> bool:
    """Return whether a compressed frame stops without the marker that ends one.

    Neither of the three codings lets that marker appear inside its data.
    """
    return data.rfind(_END) < max(data.rfind(_SCAN), 0)


def with_end(data: bytes, filling: bytes = b"") -> bytes:
    """Return a frame with the marker that it lacks, behind something that is no data of its own."""
    return data + filling + _END


def _start_of_jpeg_2000(data: bytes) -> int:
    return data[: 2**16 if data.startswith(_FILE_FORMAT) else 2**10].find(_JPEG_2000)


def _jpeg_2000(data: bytes, start: int) -> Codestream:
    (length,) = struct.unpack_from(">H", data, start + 4)
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    (components,) = struct.unpack_from(">H", data, start + 40)
    depths = [struct.unpack_from(">3B", data, start + 42 + 3 * n) for n in range(components)]
    position = start + 4 + length
    transformed = False
    while position + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == _CODING:
            transformed = data[position + 8] == 1
        if marker in (_CODING, _TILE) or marker < 0xFF00:
            break
        position += 2 + length
    return Codestream(
        kind="jpeg-2000",
        process=0,
        rows=bottom - top,
        columns=right - left,
        components=components,
        precision=max(1 + (depth & 0x7F) for depth, _, _ in depths),
        colours="RGB" if transformed and components == 3 else "",
        halved=any(across > 1 or down > 1 for _, across, down in depths),
    )


def _jpeg(data: bytes) -> Codestream | None:
    position = data.find(b"\xff\xd8") + 2
    if position < 2:
        return None
    said = ""
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        segment = data[position + 4 : position + 2 + length]
        if marker in _FRAME_MARKERS:
            return _frame(marker, segment, said)
        said = _application_colours(marker, segment) or said
        position += 2 + length
    return None


def _frame(marker: int, segment: bytes, said: str) -> Codestream:
    precision, rows, columns, components = struct.unpack_from(">BHHB", segment)
    parts = [segment[6 + 3 * n : 9 + 3 * n] for n in range(components)]
    sampling = [part[1] for part in parts]
    if b"".join(part[:1] for part in parts) in _RGB_LETTERS:
        said = said or "RGB"
    return Codestream(
        kind="jpeg-ls" if marker == _JPEG_LS else "jpeg",
        process=marker,
        rows=rows,
        columns=columns,
        components=components,
        precision=precision,
        colours=said if components == 3 else "",
        halved=len(set(sampling)) > 1,
    )


def _application_colours(marker: int, segment: bytes) -> str:
    """Return what an application's segment says of the colours: JFIF, Adobe, SPIFF or HP."""
    if marker == 0xE0 and segment.startswith(b"JFIF"):
        return "YBR_FULL"
    if marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12:
        return "YBR_FULL" if segment[11] == 1 else "RGB"
    if marker == 0xE8 and segment.startswith(b"mrfx"):
        return "RGB"  # JPEG-LS with a colour transform, which decoders undo
    if marker == 0xE8 and segment.startswith(b"SPIFF\0") and len(segment) > 18:
        return _SPIFF_COLOURS.get(segment[18], "")
    return ""
