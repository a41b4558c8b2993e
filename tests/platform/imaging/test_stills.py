import io

import numpy as np
import pytest
from PIL import Image

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.images import DecodeError
from echostill.platform.imaging.stills import open_stills

RANDOM = np.random.default_rng(0)
GREYS = RANDOM.integers(0, 256, (4, 10, 14), dtype=np.uint8)
COLOURS = RANDOM.integers(0, 256, (4, 10, 14, 3), dtype=np.uint8)


def saved(pictures, kind, **options):
    sink = io.BytesIO()
    first, *rest = [Image.fromarray(picture) for picture in pictures]
    first.save(sink, kind, save_all=bool(rest), append_images=rest, **options)
    return sink.getvalue()


def opened(data, **limits):
    return open_stills(SourceFile("a", data=data), Limits(**limits))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("pictures", [GREYS, COLOURS], ids=["grey", "colour"])
def test_animations_and_pages_give_every_frame(kind, pictures):
    options = {"lossless": True} if kind == "WEBP" else {}
    clip = opened(saved(pictures, kind, **options))
    assert clip.frames == 4
    for order in ([0, 1, 2, 3], [1, 3]):
        for index, frame in zip(order, clip.decode(order), strict=True):
            shown = frame.pixels if pictures.ndim == frame.pixels.ndim + 1 else frame.pixels[..., 0]
            assert frame.index == index
            assert np.array_equal(shown, pictures[index])


def test_a_gif_gives_every_frame():
    levels = [np.full((10, 14), level, np.uint8) for level in (0, 85, 170, 255)]
    clip = opened(saved(levels, "GIF"))
    means = [frame.pixels.mean() for frame in clip.decode(range(clip.frames))]
    assert means == [0, 85, 170, 255]


def test_a_still_is_one_frame():
    clip = opened(saved(GREYS[:1], "BMP"))
    (frame,) = clip.decode(range(clip.frames))
    assert np.array_equal(frame.pixels, GREYS[0])


def test_previews_in_a_jpeg_are_no_frames():
    assert opened(saved(COLOURS, "MPO")).frames == 1


def test_pages_of_other_sizes_and_a_damaged_page():
    pages = [np.zeros((4, 5), np.uint8), RANDOM.integers(0, 9, (90, 9), dtype=np.uint8)]
    data = saved(pages, "TIFF")
    assert [f.pixels.shape for f in opened(data).decode([0, 1])] == [(4, 5), (90, 9)]
    first, second = opened(data, max_pixels=100).decode([0, 1])
    assert first.error is None
    assert "9 x 90 pixels" in str(second.error)
    cut = opened(saved(GREYS, "GIF")[:-60])
    frames = list(cut.decode(range(cut.frames)))
    assert frames[0].error is None


def test_more_frames_than_allowed_are_refused():
    with pytest.raises(DecodeError, match=r"holds 4 frames.*max_frames=3"):
        opened(saved(GREYS, "TIFF"), max_frames=3)
    with pytest.raises(DecodeError, match="max_bytes=50"):
        opened(saved(GREYS, "TIFF"), max_bytes=50)


def test_a_picture_of_nan_is_refused():
    sink = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(sink, "TIFF")
    (frame,) = opened(sink.getvalue()).decode([0])
    assert str(frame.error) == "holds no finite value"


def test_postscript_is_never_run():
    with pytest.raises(DecodeError, match="not an image in a known format"):
        opened(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
