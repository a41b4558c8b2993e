"""Compressed frames inside a DICOM file's Pixel Data, found by what is there.

The frames are a row of fragments (PS3.5 A.4). Offset tables say where frames begin, but scanners
leave them empty or write them wrong, so a table is believed only where it fits the fragments.
"""

import struct
from collections.abc import Sequence
from itertools import pairwise

from echostill.platform.imaging.images import DecodeError

_ITEM = 0xE000FFFE
_END = 0xE0DDFFFE
# Start of a JPEG or JPEG-LS image, of a JPEG 2000 codestream, and of a JP2 file.
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP")


def split_frames(
    data: bytes, stated: int, extended: Sequence[int] = (), *, one_fragment_each: bool = False
) -> list[list[memoryview]]:
    """Return the fragments of each frame that is there.

    Args:
        data: Value of Pixel Data, in little endian, as encapsulated data always is.
        stated: Number of frames that the header states.
        extended: Values of the Extended Offset Table, where there is one.
        one_fragment_each: Whether the transfer syntax wants a fragment per frame (RLE).

    Returns:
        A list of fragments per frame; fewer frames than stated where fragments are missing.

    Raises:
        DecodeError: There are no fragments.
    """
    table, starts, fragments = _items(data)
    if not fragments:
        raise DecodeError("holds no compressed frames: its pixel data has no fragments")
    if len(fragments) == stated or one_fragment_each:
        return [[fragment] for fragment in fragments]
    for offsets in (list(extended), table):
        if len(offsets) > 1 and _fits(offsets, starts):
            return _group(fragments, [starts.index(offset) for offset in offsets])
    if stated == 1:
        return [fragments]
    begins = [n for n, fragment in enumerate(fragments) if bytes(fragment[:6]).startswith(_STARTS)]
    if len(begins) < len(fragments) and begins[:1] == [0]:
        return _group(fragments, begins)
    return [[fragment] for fragment in fragments]


def _items(data: bytes) -> tuple[list[int], list[int], list[memoryview]]:
    """Walk the items: the offset table, and each fragment with where it begins behind the table."""
    view = memoryview(data)
    items: list[memoryview] = []
    positions: list[int] = []
    position = 0
    while position + 8 <= len(view):
        tag, length = struct.unpack_from("<II", view, position)
        # What is no item ends the walk, as the end does: the frames before it are whole.
        if tag != _ITEM:
            break
        positions.append(position)
        items.append(view[position + 8 : position + 8 + length])  # a cut-off one as far as it goes
        position += 8 + length
    if not items:
        return [], [], []
    whole = len(items[0]) // 4
    table = list(struct.unpack_from(f"<{whole}I", items[0])) if whole else []
    return table, [start - positions[1] for start in positions[1:]], items[1:]


def _fits(offsets: Sequence[int], starts: Sequence[int]) -> bool:
    rising = all(first < second for first, second in pairwise(offsets))
    return rising and offsets[0] == 0 and set(offsets) <= set(starts)


def _group(fragments: list[memoryview], begins: list[int]) -> list[list[memoryview]]:
    ends = [*begins[1:], len(fragments)]
    return [fragments[begin:end] for begin, end in zip(begins, ends, strict=True)]
