"""Changed test images: the same for every model, and changed in what they should be."""

import numpy as np
import pytest

from echostill.eval.unius.protocols.robustness import CHANGES, DARKNESS, corrupt, corrupt_masks

PIXELS = np.random.default_rng(0).integers(40, 120, (4, 1, 24, 24)).repeat(3, 1).astype(np.uint8)
IDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_depends_on_the_id_alone(kind):
    changed = corrupt(kind, PIXELS, IDS)
    assert changed.shape == PIXELS.shape
    assert (changed != PIXELS).any(axis=(1, 2, 3)).all()
    assert np.array_equal(changed[2:], corrupt(kind, PIXELS[2:], IDS[2:]))
    assert np.array_equal(changed[:, 0], changed[:, 1])  # grey stays grey
    if kind != "depth":
        same = corrupt(kind, PIXELS[[0, 0]], ["a", "b"])
        assert not np.array_equal(same[0], same[1]) or kind == "gain"


def test_a_shadow_darkens_a_strip_and_nothing_else():
    changed = corrupt("shadow", PIXELS, IDS)[0, 0].astype(float)
    dark = changed != PIXELS[0, 0]
    columns = np.flatnonzero(dark.any(0))
    assert list(columns) == list(range(columns[0], columns[0] + 6))
    assert dark[-1].sum() == 6
    assert np.allclose(changed[dark], np.rint(PIXELS[0, 0][dark] * DARKNESS))


def test_gain_keeps_the_order_of_the_grey_levels():
    for image, own in zip(corrupt("gain", PIXELS, IDS), PIXELS, strict=True):
        order = np.argsort(own[0].ravel(), kind="stable")
        assert (np.diff(image[0].ravel()[order].astype(int)) >= 0).all()


def test_only_depth_moves_masks_and_with_the_image():
    masks = np.zeros((1, 24, 24), np.uint8)
    masks[0, 10:20, 5:15] = 1
    for kind in ("speckle", "gain", "shadow"):
        assert np.array_equal(corrupt_masks(kind, masks), masks)
    image = (masks[:, None] * 200).repeat(3, 1)
    moved = corrupt_masks("depth", masks)[0]
    bright = corrupt("depth", image, ["a"])[0, 0] > 100
    assert (moved == bright).mean() > 0.95
    assert 0 < moved.sum() < masks.sum()
