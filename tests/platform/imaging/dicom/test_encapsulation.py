import io
import struct

import pytest

from echostill.platform.imaging.dicom.encapsulation import Piece, read_pieces, split_frames
from echostill.platform.imaging.images import DecodeError

JPEG = b"\xff\xd8\xff"


def item(data):
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data


def pixel_data(*fragments, table=()):
    return b"".join([item(struct.pack(f"<{len(table)}I", *table)), *map(item, fragments)])


def split(data, stated, **options):
    """Split pixel data that lies in the middle of a file."""
    stream = io.BytesIO(b"before" + data + b"behind it")
    return stream, split_frames(stream, Piece(6, len(data)), stated, **options)


def frames(data, stated, **options):
    stream, found = split(data, stated, **options)
    return [read_pieces(stream, pieces) for pieces in found]


def test_a_fragment_per_frame_needs_no_table():
    data = pixel_data(b"one!", b"two!", b"tri!", table=(0, 5, 1))
    assert frames(data, 3) == [b"one!", b"two!", b"tri!"]


def test_fragments_of_one_frame_are_joined():
    assert frames(pixel_data(b"one!", b"more"), 1) == [b"one!more"]


def test_a_right_table_says_where_frames_begin():
    data = pixel_data(b"a1", b"a2", b"b1", table=(0, 20))
    assert frames(data, 2) == [b"a1a2", b"b1"]
    assert frames(pixel_data(b"a1", b"a2", b"b1"), 2, extended=(0, 20)) == [b"a1a2", b"b1"]


@pytest.mark.parametrize("table", [(), (0, 7), (20, 0), (0, 4_000_000_000), (10, 20)])
def test_without_a_right_table_images_begin_where_their_marker_is(table):
    fragments = (JPEG + b"a", b"b", JPEG + b"c", b"d", b"e")
    data = pixel_data(*fragments, table=table)
    assert frames(data, 2) == [JPEG + b"ab", JPEG + b"cde"]


def test_fragments_without_marker_are_frames_each():
    assert frames(pixel_data(b"a", b"b", b"c"), 2) == [b"a", b"b", b"c"]
    assert frames(pixel_data(b"a", b"b"), 1, one_fragment_each=True) == [b"a", b"b"]


def test_a_cut_or_broken_item_ends_the_walk():
    data = pixel_data(b"one!", b"two!")
    assert frames(data[:-2], 2) == [b"one!", b"tw"]
    assert frames(data + b"garbage and more garbage", 2) == [b"one!", b"two!"]
    for broken in (b"", b"\0" * 40, item(b"")):
        with pytest.raises(DecodeError, match="no fragments"):
            split(broken, 1)


def test_only_headers_of_fragments_are_read():
    """A cine's frames stay in the file until they are decoded."""

    class Counting(io.BytesIO):
        count = 0

        def read(self, size=-1):
            data = super().read(size)
            self.count += len(data)
            return data

    fragments = [JPEG + bytes(5000)] * 50
    stream = Counting(pixel_data(*fragments))
    whole = Piece(0, len(stream.getvalue()))
    assert len(split_frames(stream, whole, 1)) == 50
    assert stream.count < 50 * 40


@pytest.mark.parametrize("stated", [1, 2, 3])
def test_empty_fragments_are_no_frames(stated):
    data = pixel_data(*[piece for n in range(stated) for piece in (JPEG + bytes([n, 0]), b"")])
    assert frames(data, stated) == [JPEG + bytes([n, 0]) for n in range(stated)]


def test_an_empty_fragment_counts_where_the_header_counts_it():
    assert frames(pixel_data(b"one!", b"", b"tri!"), 3) == [b"one!", b"", b"tri!"]
    with pytest.raises(DecodeError, match="no fragments"):
        split(pixel_data(b"", b""), 2)


def test_a_padding_byte_that_the_length_does_not_count():
    data = item(b"") + item(b"one") + b"\0" + item(b"two") + b"\0" + item(b"six")
    assert frames(data, 3) == [b"one", b"two", b"six"]


def test_more_frames_begin_than_the_header_states():
    assert frames(pixel_data(JPEG + b"a", JPEG + b"b"), 1) == [JPEG + b"a", JPEG + b"b"]
    assert frames(pixel_data(JPEG + b"a", b"b"), 1) == [JPEG + b"ab"]
