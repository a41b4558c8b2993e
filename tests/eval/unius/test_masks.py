"""Masks from files: rules, values, unions, and what does not fit its image."""

import io

import numpy as np
import pytest
from PIL import Image

from echostill.eval.unius.download import Download
from echostill.eval.unius.items import LayerOf
from echostill.eval.unius.layouts import MaskFiles, MaskLayer
from echostill.eval.unius.masks import apply_rule, read_layer
from echostill.platform.imaging.images import DecodeError

GREY = np.array([[0, 1, 3], [127, 128, 255]], dtype=np.uint8)


def how(**options):
    return MaskFiles(files="(?P<key>.*)", **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[0, 0, 0], [0, 1, 1]]),
        ({"threshold": 150}, [[0, 0, 0], [0, 0, 1]]),
        ({"rule": "nonzero"}, [[0, 1, 1], [1, 1, 1]]),
        ({"rule": "values"}, GREY),
    ],
)
def test_rules(options, expected):
    assert np.array_equal(apply_rule(GREY[None], how(**options)), np.array([expected]))


def layer(folder, files, value=1, **options):
    for name, pixels in files.items():
        Image.fromarray(pixels).save(folder / name)
    rule = how(**options)
    part = LayerOf(MaskLayer(name="lesion", value=value, files=(rule,)), rule, sorted(files))
    with Download(str(folder)) as download:
        return read_layer(download, part, (1, *GREY.shape))


def test_several_files_are_united_and_painted_with_the_layers_value(tmp_path):
    first, second = np.zeros_like(GREY), np.zeros_like(GREY)
    first[0, 0], second[1, 2] = 255, 255
    mask = layer(tmp_path, {"a.png": first, "b.png": second}, value=3)
    assert mask[0].tolist() == [[3, 0, 0], [0, 0, 3]]


def test_colours_and_sixteen_bits_are_grey_values(tmp_path):
    coloured = np.repeat(GREY[..., None], 3, axis=2)
    assert layer(tmp_path, {"a.png": coloured})[0].tolist() == [[0, 0, 0], [0, 1, 1]]
    deep = GREY.astype(np.uint16) * 257
    assert layer(tmp_path, {"a.png": deep})[0].tolist() == [[0, 0, 0], [0, 1, 1]]


def test_another_size_damage_and_a_missing_contour_are_said(tmp_path):
    with pytest.raises(DecodeError, match=r"a mask 'a.png' that is 2 x 2, but the image 3 x 2"):
        layer(tmp_path, {"a.png": GREY[:, :2]})
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rule = how()
    part = LayerOf(MaskLayer(name="lesion", files=(rule,)), rule, ["a.png"])
    with Download(str(tmp_path)) as download, pytest.raises(DecodeError, match=r"'a\.png' that is"):
        read_layer(download, part, (1, 2, 3))
    contours = MaskFiles(files=r"(?P<key>.*)-(?P<part>LI|MA)\.txt", reads="contours")
    part = LayerOf(MaskLayer(name="wall", files=(contours,)), contours, ["a-LI.txt"])
    with Download(str(tmp_path)) as download, pytest.raises(DecodeError, match="1 contour file"):
        read_layer(download, part, (1, 2, 3))


def test_the_original_file_is_not_changed_by_reading(tmp_path):
    layer(tmp_path, {"a.png": GREY})
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO((tmp_path / "a.png").read_bytes()))), GREY
    )
