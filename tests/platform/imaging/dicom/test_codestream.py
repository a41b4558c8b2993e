import io
import struct

import numpy as np
import pytest
from PIL import Image

from echostill.platform.imaging.dicom.codestream import (
    bare_codestream,
    check_size_inside,
    lacks_end,
    read_codestream,
    with_end,
)
from echostill.platform.imaging.images import DecodeError


def encoded(kind, **options):
    sink = io.BytesIO()
    Image.fromarray(np.zeros((40, 60), np.uint8)).save(sink, kind, **options)
    return sink.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encoded("JPEG"),
        encoded("JPEG", progressive=True),
        b"\xff\xd8" + b"\xff\xff\xff" + encoded("JPEG")[2:],  # fill bytes
        encoded("JPEG2000", no_jp2=True),
        encoded("JPEG2000"),
        b"\xff\xd8\xff\xf7\0\x0b\x08" + struct.pack(">HH", 40, 60) + b"\x01\x01\x11\0",  # JPEG-LS
    ],
)
def test_the_size_inside_is_read(data):
    check_size_inside(read_codestream(data), 40, 60)
    with pytest.raises(DecodeError, match="60 x 40, and the header says 41 x 60"):
        check_size_inside(read_codestream(data), 60, 41)


@pytest.mark.parametrize(
    "data", [b"", b"nothing", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\0", b"\xff\x4f\xff\x51"]
)
def test_what_has_no_size_is_refused(data):
    with pytest.raises(DecodeError, match="no readable beginning"):
        read_codestream(data)


def colour(kind, **options):
    sink = io.BytesIO()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(sink, kind, **options)
    return sink.getvalue()


def segment(jpeg, marker, data):
    """Put an application's segment behind the start of a JPEG."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def without_jfif(jpeg):
    (length,) = struct.unpack(">H", jpeg[4:6])
    return jpeg[:2] + jpeg[4 + length :]


BARE = without_jfif(colour("JPEG"))
JPEG_LS = (
    b"\xff\xd8\xff\xf7\0\x11\x08"
    + struct.pack(">HH", 40, 60)
    + b"\x03\x01\x11\0\x02\x11\0\x03\x11\0"
)
SPIFF = b"SPIFF\0\x01\x02\0\x03" + struct.pack(">II", 40, 60)


@pytest.mark.parametrize(
    ("data", "kind", "components", "precision", "colours", "halved"),
    [
        (encoded("JPEG"), "jpeg", 1, 8, "", False),
        (colour("JPEG"), "jpeg", 3, 8, "YBR_FULL", True),
        (colour("JPEG", subsampling=0), "jpeg", 3, 8, "YBR_FULL", False),
        (colour("JPEG", keep_rgb=True), "jpeg", 3, 8, "RGB", False),
        (BARE, "jpeg", 3, 8, "", True),
        (segment(BARE, 0xEE, b"Adobe\0\x64\0\0\0\0\0"), "jpeg", 3, 8, "RGB", True),
        (segment(BARE, 0xEE, b"Adobe\0\x64\0\0\0\0\x01"), "jpeg", 3, 8, "YBR_FULL", True),
        (JPEG_LS, "jpeg-ls", 3, 8, "", False),
        (segment(JPEG_LS, 0xE8, b"mrfx\x01"), "jpeg-ls", 3, 8, "RGB", False),
        (segment(JPEG_LS, 0xE8, SPIFF + b"\x0a" + bytes(12)), "jpeg-ls", 3, 8, "RGB", False),
        (segment(JPEG_LS, 0xE8, SPIFF + b"\x03" + bytes(12)), "jpeg-ls", 3, 8, "YBR_FULL", False),
        (encoded("JPEG2000"), "jpeg-2000", 1, 8, "", False),
        (colour("JPEG2000", mct=1), "jpeg-2000", 3, 8, "RGB", False),
        (colour("JPEG2000", mct=0), "jpeg-2000", 3, 8, "", False),
        (colour("JPEG2000", mct=1, no_jp2=True), "jpeg-2000", 3, 8, "RGB", False),
    ],
)
def test_what_a_codestream_says_of_itself(data, kind, components, precision, colours, halved):
    found = read_codestream(data)
    assert (found.kind, found.rows, found.columns) == (kind, 40, 60)
    assert (found.components, found.precision) == (components, precision)
    assert (found.colours, found.halved) == (colours, halved)


@pytest.mark.parametrize("data", [encoded("JPEG"), encoded("JPEG2000", no_jp2=True)])
def test_the_end(data):
    assert not lacks_end(data)
    assert not lacks_end(data + b"something behind it")
    assert lacks_end(data[:-2])
    assert with_end(data[:-2]) == data
    thumbnail = segment(data, 0xE1, data) if data[1] == 0xD8 else data
    assert lacks_end(thumbnail[:-2])  # the end of a picture inside is not its own


def test_the_file_format_around_a_codestream_is_taken_off():
    whole, bare = encoded("JPEG2000"), encoded("JPEG2000", no_jp2=True)
    assert bare_codestream(whole) == bare_codestream(bare) == bare
    assert bare_codestream(encoded("JPEG")) == encoded("JPEG")
    # A damaged box: some readers never get past one.
    broken = whole.replace(b"jp2h", b"\0\0\0\0")
    assert bare_codestream(broken) == bare
