import numpy as np
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.dicom.colours import window_fraction
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


def test_window_is_applied_to_sixteen_bits(dicom):
    values = np.array([[[0, 100, 200, 300, 4000]]], dtype=np.uint16)
    data = dicom(values, WindowCenter=200, WindowWidth=201, RescaleSlope=1, RescaleIntercept=0)
    expected = np.clip((values - 199.5) / 200 + 0.5, 0, 1) * 255
    assert np.array_equal(pixels_of(data), np.rint(expected))


def test_rescale_comes_before_the_window(dicom):
    values = np.array([[[0, 50, 100, 150]]], dtype=np.uint16)
    rescaled = dicom(
        values, WindowCenter=100, WindowWidth=201, RescaleSlope=2, RescaleIntercept=-10
    )
    expected = np.clip((values * 2.0 - 10 - 99.5) / 200 + 0.5, 0, 1) * 255
    assert np.array_equal(pixels_of(rescaled), np.rint(expected))


def test_sixteen_bits_without_a_window_use_their_own_range(dicom):
    values = np.array([[[1000, 1500, 3000]]], dtype=np.uint16)
    assert pixels_of(dicom(values)).tolist() == [[[0, 64, 255]]]


@pytest.mark.parametrize("kind", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_rise_from_zero_to_one_around_the_centre(kind):
    shown = window_fraction(np.linspace(-5000, 5000, 1001), 40.0, 400.0, kind)
    assert (np.diff(shown) >= 0).all()
    assert shown[0] < 1e-6
    assert shown[-1] > 1 - 1e-6
    assert abs(float(window_fraction(np.array([40.0]), 40.0, 400.0, kind)[0]) - 0.5) < 0.01


def test_window_of_width_one_is_a_step():
    assert window_fraction(np.array([9.0, 9.5, 10.0]), 10.0, 1.0, "LINEAR").tolist() == [0, 0, 1]


def test_signed_sixteen_bits_go_through_the_window_and_are_inverted(dicom):
    values = np.array([[[-1000, -50, 0, 50, 1000]]], dtype=np.int16)
    shown = pixels_of(dicom(values, WindowCenter=0, WindowWidth=101))
    expected = np.rint(np.clip((values + 0.5) / 100 + 0.5, 0, 1) * 255)
    assert np.array_equal(shown, expected)
    inverted = pixels_of(dicom(values, "MONOCHROME1", WindowCenter=0, WindowWidth=101))
    assert np.array_equal(inverted, 255 - expected)


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
