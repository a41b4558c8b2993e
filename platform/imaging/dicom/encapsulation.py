"""Compressed frames inside a DICOM file's Pixel Data, found by what is there.

The frames are a row of fragments (PS3.5 A.4). Offset tables say where frames begin, but scanners
leave them empty or write them wrong, so a table is believed only where it fits the fragments. Only
the fragments' headers are read here: a frame's bytes come when it is decoded.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import BinaryIO, NamedTuple

from echostill.platform.imaging.images import DecodeError

_ITEM = 0xE000FFFE
# Start of a JPEG or JPEG-LS image, of a JPEG 2000 codestream, and of a JP2 file.
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")


class Piece(NamedTuple):
    """A part of a file: where it begins, and how many bytes of it there are."""

    offset: int
    length: int


def read_pieces(stream: BinaryIO, pieces: Sequence[Piece]) -> bytes:
    """Return the bytes of some pieces, joined."""
    parts = []
    for piece in pieces:
        stream.seek(piece.offset)
        parts.append(stream.read(piece.length))
    return b"".join(parts)


def split_frames(
    stream: BinaryIO,
    pixels: Piece,
    stated: int,
    extended: Sequence[int] = (),
    *,
    one_fragment_each: bool = False,
) -> list[list[Piece]]:
    """Return the fragments of each frame that is there.

    Args:
        stream: The file.
        pixels: Where the value of Pixel Data lies, in little endian, as encapsulated data always
            is.
        stated: Number of frames that the header states.
        extended: Values of the Extended Offset Table, where there is one.
        one_fragment_each: Whether the transfer syntax wants a fragment per frame (RLE).

    Returns:
        A list of fragments per frame; fewer frames than stated where fragments are missing.

    Raises:
        DecodeError: There are no fragments.
    """
    table, starts, fragments = _items(stream, pixels)
    filled = [fragment for fragment in fragments if fragment.length]
    if not filled:
        raise DecodeError("holds no compressed frames: its pixel data has no fragments")
    if len(fragments) == stated:
        return [[fragment] for fragment in fragments]
    if len(filled) == stated or one_fragment_each:
        return [[fragment] for fragment in filled]
    for offsets in (list(extended), table):
        if len(offsets) > 1 and _fits(offsets, starts):
            return _group(fragments, [starts.index(offset) for offset in offsets])
    begins = [n for n, fragment in enumerate(filled) if _begins_a_frame(stream, fragment)]
    if begins[:1] == [0] and (stated > 1 or len(begins) > 1):
        return _group(filled, begins)
    if stated == 1:
        return [filled]
    return [[fragment] for fragment in filled]


def all_fragments(stream: BinaryIO, pixels: Piece) -> list[Piece]:
    """Return every fragment, of a film that lies in them in one piece.

    Raises:
        DecodeError: There are none.
    """
    _, _, fragments = _items(stream, pixels)
    if not fragments:
        raise DecodeError("holds no compressed frames: its pixel data has no fragments")
    return fragments


def _items(stream: BinaryIO, pixels: Piece) -> tuple[list[int], list[int], list[Piece]]:
    """Walk the items: the offset table, and each fragment with where it begins behind the table."""
    position, end = pixels.offset, pixels.offset + pixels.length
    items: list[Piece] = []
    headers: list[int] = []
    while position + 8 <= end:
        stream.seek(position)
        tag, length = struct.unpack("<II", stream.read(8))
        if tag != _ITEM and items and items[-1].length % 2:
            # Items are of even length; some writers pad odd ones without counting the byte.
            position += 1
            stream.seek(position)
            tag, length = struct.unpack("<II", stream.read(8).ljust(8, b"\0"))
        # What is no item ends the walk, as the end does: the frames before it are whole.
        if tag != _ITEM:
            break
        headers.append(position)
        # A cut-off fragment reaches as far as the file does.
        items.append(Piece(position + 8, max(0, min(length, end - position - 8))))
        position += 8 + length
    if not items:
        return [], [], []
    whole = items[0].length // 4
    table = list(struct.unpack(f"<{whole}I", read_pieces(stream, items[:1])[: whole * 4]))
    return table, [header - headers[1] for header in headers[1:]], items[1:]


def _begins_a_frame(stream: BinaryIO, fragment: Piece) -> bool:
    return read_pieces(stream, [Piece(fragment.offset, min(fragment.length, 6))]).startswith(
        _STARTS
    )


def _fits(offsets: Sequence[int], starts: Sequence[int]) -> bool:
    rising = all(first < second for first, second in pairwise(offsets))
    return rising and offsets[0] == 0 and set(offsets) <= set(starts)


def _group(fragments: list[Piece], begins: list[int]) -> list[list[Piece]]:
    ends = [*begins[1:], len(fragments)]
    return [fragments[begin:end] for begin, end in zip(begins, ends, strict=True)]
