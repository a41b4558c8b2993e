import io
import struct

import numpy as np
import pytest
from PIL import Image

from echostill.platform.imaging.dicom.codestream import check_size_inside
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
    check_size_inside(data, 40, 60)
    with pytest.raises(DecodeError, match="60 x 40, and the header says 41 x 60"):
        check_size_inside(data, 60, 41)


@pytest.mark.parametrize(
    "data", [b"", b"nothing", b"\xff\xd8", b"\xff\xd8\xff\xe0\0\0", b"\xff\x4f\xff\x51"]
)
def test_what_has_no_size_is_refused(data):
    with pytest.raises(DecodeError, match="no readable beginning"):
        check_size_inside(data, 40, 60)
