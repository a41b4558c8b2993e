import io
import sys

import numpy as np
import pytest
from PIL import Image

from echostill.platform.imaging.containers import container_of, open_clip
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
JPEG_XL = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40)


def test_heic_without_its_package_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert container_of(HEIC, "a.png") == "heic"
    with pytest.raises(DecodeError, match=r"HEIC picture.*pip install pillow-heif"):
        open_clip(SourceFile("a.png", data=HEIC))


def test_heic_with_its_package():
    heif = pytest.importorskip("pillow_heif")
    ramp = np.add.outer(np.arange(64), np.arange(96)).astype(np.uint8)
    sink = io.BytesIO()
    heif.from_pillow(Image.fromarray(ramp)).save(sink, quality=95)
    data = sink.getvalue()
    (frame,) = open_clip(SourceFile("a", data=data)).decode([0])
    grey = frame.pixels if frame.pixels.ndim == 2 else frame.pixels.mean(axis=2)
    assert np.abs(grey - ramp).mean() < 3
    (frame,) = open_clip(SourceFile("a", data=data), Limits(max_pixels=100)).decode([0])
    assert "max_pixels=100" in str(frame.error)
    with pytest.raises(DecodeError, match="max_bytes=50"):
        open_clip(SourceFile("a", data=data), Limits(max_bytes=50))
    (frame,) = open_clip(SourceFile("a", data=HEIC)).decode([0])
    assert str(frame.error) == "is damaged or truncated"


@pytest.mark.parametrize(("name", "data"), [("a.png", JPEG_XL), ("a.jxl", b"\xff\x0a" + bytes(40))])
def test_jpeg_xl_is_named(name, data):
    with pytest.raises(DecodeError, match="JPEG XL picture, which is not read: convert it"):
        open_clip(SourceFile(name, data=data))
