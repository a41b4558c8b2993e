"""What a compressed frame says of its own size, read before any decoder believes it.

A damaged or forged size makes decoders allocate and compute for minutes.
"""

import struct

from echostill.platform.imaging.images import DecodeError

_SIZE_OF_JPEG_2000 = b"\xff\x4f\xff\x51"  # start of codestream, then the SIZ segment
# Start of frame: the JPEG kinds (C0 to CF but for tables and arithmetic conditioning) and JPEG-LS.
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}


def check_size_inside(data: bytes, rows: int, columns: int) -> None:
    """Refuse a JPEG, JPEG-LS or JPEG 2000 frame whose own size is not the header's.

    Raises:
        DecodeError: The sizes differ, or the frame does not begin as one of these.
    """
    start = data[:1024].find(_SIZE_OF_JPEG_2000)
    found = _size_of_jpeg_2000(data, start) if start >= 0 else _size_of_jpeg(data)
    if found is None:
        raise DecodeError("cannot be decoded: its compressed data has no readable beginning")
    if found != (rows, columns):
        raise DecodeError(
            f"holds compressed pixels of {found[1]} x {found[0]}, and the header says "
            f"{columns} x {rows}"
        )


def _size_of_jpeg_2000(data: bytes, start: int) -> tuple[int, int] | None:
    if len(data) < start + 24:
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    return bottom - top, right - left


def _size_of_jpeg(data: bytes) -> tuple[int, int] | None:
    position = data.find(b"\xff\xd8") + 2
    if position < 2:
        return None
    while position + 9 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill
            position += 1
            continue
        if marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return height, width
        (length,) = struct.unpack_from(">H", data, position + 2)
        position += 2 + length
    return None
