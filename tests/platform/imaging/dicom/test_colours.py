import numpy as np
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import DecodeError

RANDOM = np.random.default_rng(0)


def pixels_of(data):
    clip = open_dicom(SourceFile("file", data=data))
    frames = list(clip.decode(range(clip.frames)))
    assert not [frame.error for frame in frames if frame.error]
    return np.stack([frame.pixels for frame in frames])


def test_grey_and_inverted_grey(dicom):
    values = RANDOM.integers(0, 256, (3, 6, 8), dtype=np.uint8)
    assert np.array_equal(pixels_of(dicom(values)), values)
    assert np.array_equal(pixels_of(dicom(values, "MONOCHROME1")), 255 - values)


def test_rgb_in_either_planar_configuration(dicom):
    values = RANDOM.integers(0, 256, (1, 6, 8, 3), dtype=np.uint8)
    assert np.array_equal(pixels_of(dicom(values, "RGB")), values)
    planes = np.ascontiguousarray(values.transpose(0, 3, 1, 2)).tobytes()
    data = dicom(values, "RGB", PlanarConfiguration=1, PixelData=planes)
    assert np.array_equal(pixels_of(data), values)


def test_ybr_becomes_rgb(dicom):
    rgb = RANDOM.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    ybr = np.asarray(Image.fromarray(rgb[0]).convert("YCbCr"))[None]
    decoded = pixels_of(dicom(np.ascontiguousarray(ybr), "YBR_FULL"))
    assert np.abs(decoded.astype(int) - rgb).max() <= 3


def test_sixteen_bit_colours_keep_their_proportions(dicom):
    values = RANDOM.integers(0, 4096, (1, 4, 6, 3)).astype(np.uint16)
    data = dicom(values, "RGB", BitsStored=12, HighBit=11)
    assert np.array_equal(pixels_of(data), np.rint(values * (255 / 4095)))


def test_uncompressed_halved_colours(dicom):
    """Y1 Y2 Cb Cr of two pixels (PS3.3 C.7.6.3.1.2), in full and in studio range."""
    flat = np.empty((1, 4, 6, 3), np.uint8)
    flat[...] = (200, 40, 90)
    for photometric, stored in (
        ("YBR_FULL_422", (94, 126, 204)),
        ("YBR_PARTIAL_422", (96, 126, 195)),
    ):
        quad = bytes((stored[0], stored[0], stored[1], stored[2])) * (4 * 6 // 2)
        shown = pixels_of(dicom(flat, photometric, PixelData=quad))
        assert np.abs(shown.astype(int) - flat).max() <= 3, photometric


def test_whole_colours_called_halved_are_refused(dicom):
    values = np.zeros((1, 4, 6, 3), np.uint8)
    with pytest.raises(DecodeError, match="half longer than 'YBR_FULL_422'"):
        pixels_of(dicom(values, "YBR_FULL_422"))


def test_studio_range_ends_at_black_and_white(dicom):
    values = np.array([[[[16, 128, 128], [235, 128, 128], [0, 128, 128], [255, 128, 128]]]])
    shown = pixels_of(dicom(values.astype(np.uint8), "YBR_PARTIAL_420"))
    assert shown.tolist() == [[[[0] * 3, [255] * 3, [0] * 3, [255] * 3]]]


def test_an_unknown_photometric_interpretation_is_named(dicom):
    clip = open_dicom(SourceFile("f", data=dicom(np.zeros((1, 4, 4, 3), np.uint8), "CMYK")))
    (frame,) = clip.decode([0])
    assert "'CMYK'" in str(frame.error)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shift", [8, 0], ids=["high byte", "low byte"])
def test_palette_in_either_byte_and_order(dicom, shift, order):
    table = RANDOM.integers(0, 256, (4, 3)).astype(f"{order}u2")
    table[0] = 255
    values = RANDOM.integers(0, 4, (2, 4, 4), dtype=np.uint8)
    elements = {}
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 16]
        elements[f"{colour}PaletteColorLookupTableData"] = (
            (table[:, channel] << shift).astype(table.dtype).tobytes()
        )
    syntax = ExplicitVRBigEndian if order == ">" else ExplicitVRLittleEndian
    data = dicom(values, "PALETTE COLOR", syntax, **elements)
    assert np.array_equal(pixels_of(data), table.astype(np.uint8)[values])


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_colours_of_fewer_bits_than_their_words_are_not_dark(dicom, bits):
    values = RANDOM.integers(0, 2**bits, (1, 40, 60, 3)).astype(np.uint16)
    values[0, 0, 0] = 2**bits - 1
    shown = pixels_of(dicom(values, "RGB"))
    expected = np.rint(values * (255 / (2**bits - 1))) if bits < 14 else np.rint(values / 257)
    assert np.array_equal(shown, expected)


def test_a_palette_that_is_not_whole_is_said(dicom):
    clip = open_dicom(SourceFile("f", data=dicom(np.zeros((1, 4, 4), np.uint8), "PALETTE COLOR")))
    (frame,) = clip.decode([0])
    assert str(frame.error) == "has colours of a palette, which is missing or damaged"
