"""Crops: the cut against pixel by pixel interpolation, the alignment, the search."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from echostill.curation.copies import crops as module
from echostill.curation.copies.crops import align, crop, crop_pairs


def scene(seed, size=128):
    """A smooth picture with structure at several scales."""
    rng = np.random.default_rng(seed)
    total = sum(
        ndimage.gaussian_filter(rng.normal(size=(size, size)), sigma) * sigma
        for sigma in (3, 8, 20)
    )
    low, high = total.min(), total.max()
    return (30 + 200 * (total - low) / (high - low)).astype(np.uint8)


def square(picture, size):
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))


def test_a_cut_is_bilinear():
    picture = scene(0, 12).astype(np.float32)
    box = np.array([[0.1, 0.2, 0.7, 0.6]], dtype=np.float32)
    y = (0.2 + 0.6 * (np.arange(5) + 0.5) / 5) * 12 - 0.5
    x = (0.1 + 0.7 * (np.arange(5) + 0.5) / 5) * 12 - 0.5
    expected = ndimage.map_coordinates(picture, np.meshgrid(y, x, indexing="ij"), order=1)
    assert np.allclose(crop(picture[None], box, 5)[0], expected, atol=1e-3)


@pytest.mark.parametrize("box", [(0.02, 0.09, 0.9, 0.88), (0.1, 0.03, 0.86, 0.86)])
def test_the_box_of_a_brighter_part_is_found(box):
    whole = square(scene(1), 96).astype(np.float32)[None]
    wanted = np.array([box], dtype=np.float32)
    part = 1.1 * crop(whole, wanted, 96) - 4
    start = np.array([[0.05, 0.05, 0.9, 0.9]], dtype=np.float32)
    assert np.abs(align(whole, part, start, 10) - wanted).max() < 0.003


def pictures_with_parts(count=8):
    whole = [scene(seed) for seed in range(count)]
    parts = [picture[3:117, 9:122] for picture in whole[: count // 2]]
    return [*whole, *parts]


@pytest.mark.parametrize("flat", [module.FLAT, 4])
def test_parts_are_found_and_other_pictures_are_not(monkeypatch, flat):
    monkeypatch.setattr(module, "FLAT", flat)
    pictures = pictures_with_parts()
    thumbnails = np.stack([square(picture, 16).reshape(-1) for picture in pictures])

    def squares(rows, size):
        assert rows.tolist() == sorted(set(rows.tolist()))
        return np.stack([square(pictures[row], size) for row in rows])

    found = crop_pairs(thumbnails, np.arange(12), squares, 0.93)
    assert list(zip(*map(np.ndarray.tolist, found), strict=True)) == [
        (row, 8 + row) for row in range(4)
    ]
    # Rows of one label are not compared.
    labels = np.array([*range(8), 0, 1, 20, 21])
    found = crop_pairs(thumbnails, labels, squares, 0.93)
    assert found[0].tolist() == [2, 3]
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 1)
    again = crop_pairs(thumbnails, labels, squares, 0.93)
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


def test_no_images_and_one_have_no_pairs():
    for rows in (0, 1):
        none = np.zeros((rows, 256), np.uint8)
        found = crop_pairs(none, np.arange(rows), lambda r, size: np.empty((0, size, size)), 0.9)
        assert len(found[0]) == len(found[1]) == 0
