import bz2
import gzip
import io
import lzma

import numpy as np
import pytest
from PIL import Image

from echostill.platform.imaging.containers import container_of, has_known_suffix, open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.packed import inner_name, is_packed, unpacked_head

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
PACKERS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def png():
    sink = io.BytesIO()
    Image.fromarray(PIXELS).save(sink, "PNG")
    return sink.getvalue()


def opened(data, name="a.png.gz", **limits):
    return open_clip(SourceFile(name, data=data), Limits(**limits))


@pytest.mark.parametrize("ending", PACKERS)
def test_a_packed_picture_is_read_whatever_its_name(dicom, ending):
    pack = PACKERS[ending]
    for name in (f"a.png{ending}", "IM0001"):
        (frame,) = opened(pack(png()), name).decode([0])
        assert np.array_equal(frame.pixels, PIXELS)
    clip = opened(pack(dicom(PIXELS[None])), f"a.dcm{ending}")
    assert clip.header.sop_instance_uid == "1.2.3"
    (frame,) = clip.decode([0])
    assert np.array_equal(frame.pixels, PIXELS)


def test_parts_that_follow_each_other_are_one_file():
    data = png()
    (frame,) = opened(gzip.compress(data[:100]) + gzip.compress(data[100:])).decode([0])
    assert np.array_equal(frame.pixels, PIXELS)


@pytest.mark.parametrize("ending", PACKERS)
def test_damage_and_bombs_are_said(ending):
    packed = PACKERS[ending](png())
    with pytest.raises(DecodeError, match="damaged or truncated"):
        opened(packed[: len(packed) // 2], f"a.png{ending}")
    bomb = PACKERS[ending](png() + bytes(5_000_000))
    with pytest.raises(DecodeError, match="max_bytes=1000000"):
        opened(bomb, f"a.png{ending}", max_bytes=1_000_000)


def test_names_and_beginnings():
    assert (inner_name("a.dcm.GZ"), inner_name("a.dcm")) == ("a.dcm", "a.dcm")
    assert has_known_suffix("x/a.png.xz")
    assert not has_known_suffix("notes.txt.gz")
    assert unpacked_head(png()) == png()
    assert unpacked_head(gzip.compress(b"text")) == b"text"
    assert is_packed(lzma.compress(b""))
    assert not is_packed(b"PK\3\4")
    assert container_of(gzip.compress(b"plain text"), "notes.txt.gz") == ""
