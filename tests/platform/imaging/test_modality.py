import colorsys

import numpy as np
import pytest

from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.header import DicomHeader, Region
from echostill.platform.imaging.images import decode_image
from echostill.platform.imaging.modality import (
    MODALITIES,
    modality,
    modality_of_colours,
    stated_modality,
)

RANDOM = np.random.default_rng(0)


def sector():
    """Grey speckle in a fan, black around, as RGB."""
    y, x = np.mgrid[:160, :200]
    inside = (np.hypot(x - 100, y + 20) < 170) & (np.abs(x - 100) < 20 + y * 0.5)
    grey = np.where(inside, RANDOM.integers(20, 160, (160, 200)), 0)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def painted(box, hue_of, saturation=0.9):
    """A sector with a box of colours; ``hue_of(y, x)`` in degrees for places 0..1."""
    picture = sector()
    top, bottom, left, right = box
    for y in range(top, bottom):
        for x in range(left, right):
            hue = hue_of((y - top) / (bottom - top), (x - left) / (right - left))
            value = 0.4 + 0.5 * RANDOM.random()
            colour = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
            picture[y, x] = np.rint(np.array(colour) * 255)
    return picture


def header(*regions, image_type=()):
    places = [Region(0, 0, 9, 9, form, kind) for form, kind in regions]
    return DicomHeader("", "", "", "", "", 1, tuple(image_type), tuple(places))


def doppler():
    return painted((50, 90, 80, 120), lambda y, x: 220 if x < 0.5 else 5 + 40 * y)


def elastogram():
    return painted((40, 120, 60, 140), lambda y, x: 240 * (0.2 * RANDOM.random() + 0.8 * y))


def test_grey_is_b_mode():
    assert modality_of_colours(sector()[..., 0]) == "b_mode"
    assert modality_of_colours(sector()) == "b_mode"
    assert modality_of_colours(np.zeros((50, 50, 3), np.uint8)) == "b_mode"


def test_a_tint_over_everything_is_b_mode():
    tinted = (sector() * np.array([1.0, 0.75, 0.4])).astype(np.uint8)
    assert modality_of_colours(tinted) == "b_mode"


def test_text_and_marks_are_no_colours():
    picture = sector()
    picture[10:150:3, 5:190] = np.where(picture[10:150:3, 5:190] > 0, [255, 255, 0], 0)
    assert modality_of_colours(picture) == "b_mode"


def test_flow_and_stiffness_are_told_apart():
    assert modality_of_colours(doppler()) == "colour_doppler"
    assert modality_of_colours(elastogram()) == "elastography"


def test_colours_that_fit_neither_are_unknown():
    green = painted((40, 120, 60, 140), lambda y, x: 120)
    assert modality_of_colours(green) == "unknown"


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([(1, 1)], "b_mode"),
        ([(1, 1), (1, 2)], "colour_doppler"),
        ([(1, 1), (2, 1)], "m_mode"),
        ([(1, 1), (1, 2), (3, 3)], "spectral_doppler"),
        ([(1, 1), (4, 10), (0, 13)], "b_mode"),
        ([(0, 13)], ""),
        ([], ""),
    ],
)
def test_regions_state_it(regions, expected):
    assert stated_modality(header(*regions)) == expected


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("0001", "b_mode"),
        ("0011", "colour_doppler"),
        ("0101", "colour_doppler"),
        ("0002", "m_mode"),
        ("0009", "spectral_doppler"),
        ("0040", ""),
        ("EPI", ""),
    ],
)
def test_the_image_type_states_it_where_regions_do_not(mask, expected):
    kind = ("ORIGINAL", "PRIMARY", "TEE", mask)
    assert stated_modality(header(image_type=kind)) == expected
    assert stated_modality(header((1, 2), image_type=kind)) == "colour_doppler"


def test_what_is_stated_beats_colours_but_for_elastograms():
    """DICOM has no region type for elastography, so scanners call it tissue or flow."""
    grey = sector()
    assert modality(header((1, 2)), grey) == "colour_doppler"
    assert modality(header((1, 1)), doppler()) == "b_mode"
    assert modality(header((2, 1)), elastogram()) == "m_mode"
    for stated in ((1, 1), (1, 2)):
        assert modality(header(stated), elastogram()) == "elastography"
    assert modality(header(), doppler()) == modality(None, doppler()) == "colour_doppler"


def test_shipped_images_are_b_mode(sample):
    for path in sorted(sample.rglob("*.jpg"))[::20]:
        assert modality(None, decode_image(path.read_bytes())) == "b_mode", path.name
    for path in sample.glob("dicom/*.dcm"):
        clip = open_dicom(SourceFile(path.name, str(path)))
        frame = next(clip.decode([0]))
        assert modality(clip.header, frame.pixels) == "b_mode"


def test_the_names_are_known():
    assert {"b_mode", "colour_doppler", "elastography", "m_mode", "unknown"} < set(MODALITIES)
