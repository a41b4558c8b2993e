import struct

import pytest

from echostill.platform.imaging.dicom.encapsulation import split_frames
from echostill.platform.imaging.images import DecodeError

JPEG = b"\xff\xd8\xff"


def item(data):
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(data)) + data


def pixel_data(*fragments, table=()):
    return b"".join([item(struct.pack(f"<{len(table)}I", *table)), *map(item, fragments)])


def frames(data, stated, **options):
    return [b"".join(found) for found in split_frames(data, stated, **options)]


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
            split_frames(broken, 1)
