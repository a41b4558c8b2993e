"""Black rows: a picture that de-identification blanks is an error, one blank in its file a row."""

import io

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from echostill.curation.deidentification.settings import DeidentifySettings, MaskRule
from echostill.curation.ingestion.blanks import why_blank
from echostill.curation.ingestion.settings import IngestSettings, Source
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.imaging.images import decode_staged

RANDOM = np.random.default_rng(0)


def fan(height=240, width=320):
    """Speckle in a sector, black around it."""
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(y + 20, x - width / 2)
    inside = (radius < height) & (radius > 50) & (np.abs(x - width / 2) < 0.6 * (y + 20))
    speckle = np.minimum(RANDOM.rayleigh(45, (height, width)), 255)
    return np.where(inside, speckle, 0).astype(np.uint8)


PICTURE = fan()


def read(tmp_path, data, name="a.dcm", **settings):
    (tmp_path / name).write_bytes(data)
    source = Source(str(tmp_path / name), name)
    return read_source(source, IngestSettings(source=str(tmp_path), **settings))


def region(left, top, right, bottom):
    made = Dataset()
    made.RegionSpatialFormat = made.RegionDataType = 1
    made.RegionLocationMinX0, made.RegionLocationMinY0 = left, top
    made.RegionLocationMaxX1, made.RegionLocationMaxY1 = right, bottom
    return made


@pytest.mark.parametrize(
    "regions",
    [
        [(160, 120, 162, 122)],  # three pixels
        [(0, 0, 0, 0)],
        [(0, 0, 9000, 9000)],
        [(160, 120, 162, 122), (0, 0, 319, 239)],
        [],
    ],
)
def test_declared_regions_make_no_black_row(dicom, tmp_path, regions):
    declared = [region(*bounds) for bounds in regions]
    data = dicom(PICTURE[None], **({"SequenceOfUltrasoundRegions": declared} if declared else {}))
    # Bare noise looks like lettering to some degree; here it is the sector that counts.
    textless = DeidentifySettings(max_text=1.0)
    (row,) = read(tmp_path, data, stage_side=320, deidentify=textless)
    staged = decode_staged(row["image"]).astype(float)
    assert staged.sum() > 0.95 * PICTURE.sum()


def test_a_region_in_the_black_is_an_error_of_its_frame(dicom, tmp_path):
    declared = [region(2, 2, 40, 40)]
    data = dicom(PICTURE[None], SequenceOfUltrasoundRegions=declared)
    (failure,) = read(tmp_path, data, deidentify=DeidentifySettings(max_text=1.0))
    assert isinstance(failure, Failure)
    assert failure.error_class == "BlankPicture"
    assert "blank after de-identification" in failure.message
    assert "deidentify.masks" in failure.message


def test_a_mask_beside_the_picture_is_an_error(tmp_path):
    sink = io.BytesIO()
    Image.fromarray(PICTURE).save(sink, "PNG")
    rule = MaskRule(rows=240, columns=320, keep=((0, 0, 30, 30),))
    settings = DeidentifySettings(masks=(rule,), max_text=1.0)
    (failure,) = read(tmp_path, sink.getvalue(), "a.png", deidentify=settings)
    assert failure.error_class == "BlankPicture"


@pytest.mark.parametrize("level", [0, 3, 120, 255])
def test_a_picture_that_is_blank_in_its_file_is_a_row(tmp_path, level):
    sink = io.BytesIO()
    Image.fromarray(np.full((90, 120), level, np.uint8)).save(sink, "PNG")
    (row,) = read(tmp_path, sink.getvalue(), "a.png")
    assert isinstance(row, dict)


def test_what_counts_as_blank():
    nothing = np.zeros_like(PICTURE)
    assert "of" in why_blank(PICTURE, nothing)
    assert why_blank(PICTURE, PICTURE) == ""
    assert why_blank(nothing, nothing.copy()) == ""
    assert why_blank(nothing + 5, nothing) == ""  # nothing to see before either
    half = PICTURE.copy()
    half[:, :160] = 0
    assert why_blank(PICTURE, half) == ""
    few = nothing.copy()
    few[120, 150:160] = 200
    assert "10 are in the sector" in why_blank(PICTURE, few)
    colour = np.repeat(PICTURE[..., None], 3, axis=2)
    assert why_blank(colour, np.zeros_like(colour)) != ""
