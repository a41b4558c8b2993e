import io

import numpy as np
import pytest
from PIL import Image

from echostill.platform.imaging.files import SourceFile
from echostill.platform.imaging.images import NoImageError
from echostill.platform.imaging.labels import is_label_map, is_mask_folder, pictured
from echostill.platform.imaging.stills import open_stills

RANDOM = np.random.default_rng(0)


def areas(*values):
    """Rectangles of some values on a ground of zeros."""
    made = np.zeros((90, 120), np.uint8)
    for number, value in enumerate(values):
        made[10 + 8 * number : 60, 10 + 12 * number : 100 - 10 * number] = value
    return made


def saved(values, kind="PNG"):
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, kind)
    return sink.getvalue()


LABELS = {
    "binary": areas(1),
    "three": areas(1, 2, 3),
    "white mask": areas(255),
    "grey mask": areas(127),
    "inverted": 255 - areas(255),
    "many": areas(*range(1, 6)),
    "no background": areas(1, 2) + 1,
    "deep": areas(1, 2, 3).astype(np.uint16),
}
PICTURES = {
    "black": np.zeros((90, 120), np.uint8),
    "white": np.full((90, 120), 255, np.uint8),
    "noise of a dark frame": RANDOM.integers(0, 4, (90, 120)).astype(np.uint8),
    "specks": (RANDOM.random((90, 120)) > 0.99).astype(np.uint8),
    "dark speckle": np.minimum(RANDOM.rayleigh(5, (90, 120)), 31).astype(np.uint8),
    "dithered": (RANDOM.random((90, 120)) > 0.5).astype(np.uint8) * 255,
    "tissue": np.minimum(RANDOM.rayleigh(40, (90, 120)), 255).astype(np.uint8),
    "ramp": np.add.outer(np.arange(90), np.arange(120)).astype(np.uint8),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_told(name):
    assert is_label_map(LABELS[name])


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_no_labels(name):
    assert not is_label_map(PICTURES[name])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("name", LABELS)
def test_a_label_map_is_no_row(name, kind):
    (frame,) = open_stills(SourceFile("a", data=saved(LABELS[name], kind))).decode([0])
    assert isinstance(frame.error, NoImageError)
    assert "in even areas: a mask or label map, no picture" in str(frame.error)


def test_a_mask_of_one_bit_is_no_row():
    (frame,) = open_stills(SourceFile("a", data=saved(areas(1).astype(bool)))).decode([0])
    assert "only the values 0, 255" in str(frame.error)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_rows(name):
    (frame,) = open_stills(SourceFile("a", data=saved(PICTURES[name]))).decode([0])
    assert np.array_equal(frame.pixels, PICTURES[name])


@pytest.mark.parametrize(
    ("stem", "picture"),
    [
        *(("benign (1)_mask", "benign (1)"), ("benign (100)_mask_1", "benign (100)")),
        *(("patient0001_2CH_ED_gt", "patient0001_2CH_ED"), ("a-Mask", "a"), ("x.seg", "x")),
        *(("case 3 segmentation", "case 3"), ("7_label2", "7"), ("a_ground_truth", "a")),
        *(("mask", ""), ("masked", ""), ("damask", ""), ("a_masked", ""), ("image_1", "")),
        *(("unlabel", ""), ("mask_of_a", ""), ("a_gtx", "")),
    ],
)
def test_the_name_of_a_mask_tells_its_picture(stem, picture):
    assert pictured(stem) == picture


def test_folders_of_masks():
    assert all(is_mask_folder(name) for name in ("masks", "GT", "train_labels", "annotations"))
    assert not any(is_mask_folder(name) for name in ("images", "masked", "labelled", "benign", ""))
