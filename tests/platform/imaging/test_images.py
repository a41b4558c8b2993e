import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from echostill.platform.imaging.images import (
    DecodeError,
    content_hash,
    decode_image,
    decode_staged,
    drop_equal_channels,
    encode,
    encode_png,
    luminance,
    resize_longest,
    scale_to_bytes,
    square_pixels,
    to_square,
    typical_range,
)

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (9, 13), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (9, 13, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([(5, 7), (1, 1), (4, 6, 3)]).flatmap(lambda shape: arrays(np.uint8, shape)),
)
def test_staging_loses_nothing(pixels):
    assert np.array_equal(decode_staged(encode_png(pixels)), pixels)


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_lossy_staging_is_near_and_keeps_grey(codec):
    ramp = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    for pixels in (ramp, np.stack([ramp, ramp[::-1], 255 - ramp], axis=2)):
        fine, coarse = (encode(pixels, codec, quality) for quality in (95, 20))
        shown = decode_staged(fine)
        assert shown.shape == pixels.shape
        assert np.abs(shown.astype(int) - pixels).mean() < 4
        assert len(coarse) < len(fine)


def test_equal_channels_are_grey():
    assert np.array_equal(drop_equal_channels(np.repeat(GREY[..., None], 3, axis=2)), GREY)
    assert drop_equal_channels(COLOUR) is COLOUR
    assert drop_equal_channels(GREY) is GREY
    nearly = np.repeat(RANDOM.integers(0, 255, (90, 40, 1), dtype=np.uint8), 3, axis=2)
    nearly[77, 13, 2] += 1  # one pixel of one channel is enough
    assert drop_equal_channels(nearly) is nearly


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_formats_decode_exactly(kind, pixels):
    assert np.array_equal(decode_image(encoded(Image.fromarray(pixels), kind)), pixels)


def test_grey_jpeg_stays_grey():
    assert decode_image(encoded(Image.fromarray(GREY), "JPEG")).shape == GREY.shape


def test_one_bit_becomes_black_and_white():
    image = Image.fromarray(GREY).convert("1")
    assert set(np.unique(decode_image(encoded(image)))) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_by_their_own_range(kind):
    values = np.array([[1000, 1100], [2000, 3000]], dtype=np.uint16)
    expected = np.rint((values.astype(float) - 1000) / 2000 * 255)
    assert np.array_equal(decode_image(encoded(Image.fromarray(values), kind)), expected)


def test_constant_and_not_finite_values_scale_without_warning():
    assert not scale_to_bytes(np.full((2, 2), 7.0)).any()
    assert scale_to_bytes(np.array([[np.nan, 0.0, 2.0, np.inf]])).tolist() == [[0, 0, 255, 0]]


def test_what_is_not_finite_is_black_also_below_zero():
    """Values in decibels are negative: a hole in them must not be the brightest."""
    values = np.array([[np.nan, -60.0, -20.0, -np.inf, 0.0, np.inf]])
    assert scale_to_bytes(values).tolist() == [[0, 0, 170, 0, 255, 0]]


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.uint16, st.integers(1, 4000), elements=st.integers(1000, 2000)),
    st.lists(st.sampled_from([0, 40_000, 65_535]), max_size=6),
)
def test_a_few_outliers_against_the_sorted_values(values, outliers):
    spoilt = np.concatenate([values, np.array(outliers, np.uint16)])
    in_order = np.sort(spoilt).astype(float)
    few = len(spoilt) // 1000
    low, high = in_order[few], in_order[len(spoilt) - 1 - few]
    if not 0 < high - low < (in_order[-1] - in_order[0]) / 4:
        low, high = in_order[0], in_order[-1]
    assert typical_range(spoilt) == (low, high)
    assert typical_range(np.random.default_rng(0).permutation(spoilt)) == (low, high)


def test_outliers_are_few():
    values = RANDOM.integers(1000, 2000, 5000)
    values[:2] = 1000, 1999
    for count, expected in ((0, 1999), (1, 1999), (5, 1999), (6, 65_535)):
        spoilt = values.copy()
        spoilt[2 : 2 + count] = 65_535
        low, high = typical_range(spoilt)
        assert abs(high - expected) <= 10
        assert 1000 <= low <= 1010


def test_square_pixels():
    ramp = np.repeat(np.arange(50, dtype=np.uint8)[:, None], 40, axis=1)
    tall = square_pixels(ramp, 2.0)
    assert tall.shape == (100, 40)
    assert np.abs(tall[::2, 0].astype(int) - ramp[:, 0]).max() <= 1
    assert square_pixels(COLOUR, 0.5).shape == (9, 26, 3)
    for aspect in (1.0, 1.009, 0.991, 9.0, 0.1, 0.0, -2.0):
        assert square_pixels(ramp, aspect) is ramp


def test_palette_becomes_rgb():
    image = Image.fromarray((GREY % 2).astype(np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    expected = np.array([[10, 20, 30], [200, 100, 50]], dtype=np.uint8)[GREY % 2]
    assert np.array_equal(decode_image(encoded(image)), expected)


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_transparency_lies_over_black(pixels):
    layers = pixels if pixels.ndim == 3 else pixels[..., None]
    alpha = RANDOM.integers(0, 256, (9, 13, 1), dtype=np.uint8)
    image = Image.fromarray(np.concatenate([layers, alpha], axis=2))
    expected = np.rint(layers * (alpha / 255)).reshape(pixels.shape)
    decoded = decode_image(encoded(image))
    assert np.abs(decoded.astype(int) - expected).max() <= 1  # float32 ties


def test_transparent_palette_entry_is_black():
    image = Image.fromarray((GREY % 2).astype(np.uint8), mode="P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    decoded = decode_image(encoded(image, transparency=1))
    assert np.array_equal(decoded, np.array([[10, 20, 30], [0, 0, 0]])[GREY % 2])


def test_cmyk_jpeg_becomes_rgb():
    image = Image.new("RGB", (16, 16), (200, 40, 90))
    decoded = decode_image(encoded(image.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(decoded.reshape(-1, 3).mean(axis=0) - (200, 40, 90)).max() < 4


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [(1, GREY), (2, GREY[:, ::-1]), (3, GREY[::-1, ::-1]), (6, np.rot90(GREY, -1))],
)
def test_exif_orientation_is_applied(orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(encoded(Image.fromarray(GREY), exif=exif)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_truncated_files_are_refused(kind):
    data = encoded(Image.fromarray(RANDOM.integers(0, 256, (64, 64), dtype=np.uint8)), kind)
    with pytest.raises(DecodeError, match=r"truncated|known format"):
        decode_image(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("data", "said"), [(b"", "is empty"), (b"not an image", "known format"), (b"\xff\xd8", "known")]
)
def test_what_is_no_image_is_named(data, said):
    with pytest.raises(DecodeError, match=said):
        decode_image(data)


def test_too_many_pixels_are_refused_with_the_setting():
    with pytest.raises(DecodeError, match=r"13 x 9 pixels.*max_pixels=100"):
        decode_image(encoded(Image.fromarray(GREY)), max_pixels=100)
    assert decode_image(encoded(Image.fromarray(GREY)), max_pixels=117).shape == (9, 13)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.booleans())
def test_resize_keeps_the_shape_and_never_enlarges(height, width, side, colour):
    pixels = np.zeros((height, width, 3) if colour else (height, width), dtype=np.uint8)
    resized = resize_longest(pixels, side)
    assert resized.ndim == pixels.ndim
    assert max(resized.shape[:2]) == min(side, max(height, width))
    if max(height, width) > side:
        scale = side / max(height, width)
        assert abs(resized.shape[0] - max(1, height * scale)) <= 0.5
    else:
        assert resized is pixels


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))
    shrunk = resize_longest(stripes, 8)
    assert np.abs(shrunk[:, 1:-1].astype(int) - 127).max() < 20


def test_square_holds_the_whole_picture():
    ramp = np.repeat(np.linspace(0, 255, 60).astype(np.uint8)[None], 20, axis=0)
    square = to_square(ramp, 12)
    assert square.shape == (3, 12, 12)
    assert square.dtype == np.uint8
    assert np.array_equal(square[0], square[2])
    assert square[0, 5, 0] < 20
    assert square[0, 5, -1] > 235
    assert to_square(COLOUR, 5).shape == (3, 5, 5)


def test_hash_depends_on_pixels_and_shape():
    assert content_hash(GREY) == content_hash(np.asfortranarray(GREY))
    assert content_hash(GREY) != content_hash(GREY.T.copy())
    assert content_hash(GREY) != content_hash(GREY ^ 1)
    assert content_hash(np.zeros((2, 3), np.uint8)) != content_hash(np.zeros((3, 2), np.uint8))
    assert len(content_hash(GREY)) == 32


def test_luminance_is_between_zero_and_one():
    assert np.allclose(luminance(GREY), GREY / 255)
    expected = COLOUR @ np.array([0.299, 0.587, 0.114]) / 255
    assert np.abs(luminance(COLOUR) - expected).max() < 1 / 255
