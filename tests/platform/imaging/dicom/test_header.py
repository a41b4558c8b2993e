"""Regions, pixel aspect, and objects of a maker's own."""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from echostill.platform.imaging.dicom import open_dicom
from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.frames import Limits
from echostill.platform.imaging.header import Region
from echostill.platform.imaging.images import DecodeError

VALUES = np.random.default_rng(0).integers(0, 256, (1, 60, 80), dtype=np.uint8)
OWN = "1.2.840.113543.6.6.1.3.10002"


def opened(data, **limits):
    clip = open_dicom(SourceFile("f", data=data), Limits(**limits))
    (frame,) = clip.decode([0])
    return clip.header, frame.pixels


def region(left, top, right, bottom, kind=1):
    made = Dataset()
    made.RegionSpatialFormat, made.RegionDataType = 1, kind
    made.RegionLocationMinX0, made.RegionLocationMinY0 = left, top
    made.RegionLocationMaxX1, made.RegionLocationMaxY1 = right, bottom
    return made


def measures(spacing):
    group, inner = Dataset(), Dataset()
    inner.PixelSpacing = spacing
    group.PixelMeasuresSequence = [inner]
    return group


@pytest.mark.parametrize("side", [2, 3, 7])
def test_a_region_of_a_few_pixels_is_not_believed(dicom, side):
    tiny = region(30, 20, 30 + side - 1, 20 + side - 1)
    header, _ = opened(dicom(VALUES, SequenceOfUltrasoundRegions=[tiny]))
    assert header.regions == ()
    both = [tiny, region(0, 0, 79, 59)]
    header, _ = opened(dicom(VALUES, SequenceOfUltrasoundRegions=both))
    assert header.regions == (Region(0, 0, 79, 59, 1, 1),)


def test_regions_that_do_not_fit_are_left_to_who_uses_them(dicom):
    odd = [region(0, 0, 0, 0), region(0, 0, 4000, 4000), region(70, 0, 90, 59, kind=14)]
    header, _ = opened(dicom(VALUES, SequenceOfUltrasoundRegions=odd))
    assert len(header.regions) == 3


@pytest.mark.parametrize(
    ("elements", "shape"),
    [
        ({"PixelAspectRatio": [2, 1]}, (120, 80)),
        ({"PixelAspectRatio": [1, 2]}, (60, 160)),
        ({"PixelAspectRatio": [4, 3]}, (80, 80)),
        ({"PixelSpacing": [0.3, 0.2]}, (90, 80)),
        ({"PixelSpacing": [0.3, 0.2], "PixelAspectRatio": [1, 2]}, (90, 80)),
        ({"SharedFunctionalGroupsSequence": [measures([0.1, 0.2])]}, (60, 160)),
        ({"PixelAspectRatio": [1, 1]}, (60, 80)),
        ({"PixelAspectRatio": [1000, 1001]}, (60, 80)),
        ({"PixelAspectRatio": [0, 1]}, (60, 80)),
        ({"PixelAspectRatio": [1, 0]}, (60, 80)),
        ({"PixelAspectRatio": [1, 50]}, (60, 80)),  # no display has such pixels
        ({"PixelSpacing": [0.2, 0.2], "PixelAspectRatio": [2, 1]}, (60, 80)),
        ({"PixelSpacing": [0, 0], "PixelAspectRatio": [2, 1]}, (120, 80)),
    ],
)
def test_pixels_become_square(dicom, elements, shape):
    _, pixels = opened(dicom(VALUES, **elements))
    assert pixels.shape == shape
    if shape == (60, 80):
        assert np.array_equal(pixels, VALUES[0])


def test_a_stretched_circle_is_round_and_its_region_fits(dicom):
    y, x = np.mgrid[:60, :160]
    disc = (((y - 30) * 2.0) ** 2 + (x - 80.0) ** 2 < 40**2).astype(np.uint8) * 200
    declared = region(40, 10, 119, 49)
    data = dicom(disc[None], PixelAspectRatio=[2, 1], SequenceOfUltrasoundRegions=[declared])
    header, pixels = opened(data)
    rows, columns = np.nonzero(pixels > 100)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 2
    (found,) = header.regions
    assert (found.left, found.top, found.right, found.bottom) == (40, 20, 119, 99)
    inside = pixels[found.top : found.bottom + 1, found.left : found.right + 1]
    assert inside.sum() > 0.99 * pixels.sum()


def test_the_limit_holds_for_the_stretched_picture(dicom):
    data = dicom(VALUES, PixelAspectRatio=[4, 1])
    with pytest.raises(DecodeError, match=r"80 x 240 pixels.*max_pixels=10000"):
        opened(data, max_pixels=10_000)


def test_a_makers_own_object_is_refused_where_it_shows_a_preview(dicom):
    with pytest.raises(DecodeError, match=r"its maker's own.*pixels of 4 x 4 are a preview"):
        opened(dicom(VALUES[:, :4, :4], SOPClassUID=OWN))
    with pytest.raises(DecodeError, match=r"its maker's own.*holds no pixel data"):
        opened(dicom(SOPClassUID=OWN))
    _, pixels = opened(dicom(VALUES, SOPClassUID=OWN))
    assert np.array_equal(pixels, VALUES[0])
    _, pixels = opened(dicom(VALUES[:, :4, :4]))  # small, but of a standard kind
    assert pixels.shape == (4, 4)


def test_young_transfer_syntaxes_have_names(dicom):
    fragment = pydicom.encaps.encapsulate([b"12"])
    for uid, name in {
        "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
        "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
        "1.2.840.10008.1.2.4.112": "JPEG XL",
        "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
        "1.2.840.10008.1.2.4.94": "JPIP Referenced",
        "1.2.840.10008.1.2.1.98": "Encapsulated Uncompressed Explicit VR Little Endian",
    }.items():
        # pydicom writes no syntax that it does not know: a known one of that length stands in.
        known = "1.2.840.10008.1.2.4.201" if len(uid) == 23 else "1.2.840.10008.1.2.4.50"
        data = dicom(VALUES, syntax=known, PixelData=fragment)
        data = data.replace(known.encode(), uid.encode().ljust(len(known), b"\0"), 1)
        with pytest.raises(DecodeError, match=f"transfer syntax '{name}', which is not read"):
            opened(data)
