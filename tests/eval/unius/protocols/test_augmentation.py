"""The published augmentation: each change alone against what it should do."""

import numpy as np
import pytest
import torch

from echostill.eval.unius.protocols.augmentation import UNIFORMS, augment_batch
from echostill.eval.unius.protocols.settings import PublishedSettings

SETTINGS = PublishedSettings()
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
MASKS = (IMAGES[:, 0] > 0.6).to(torch.uint8)
LABELS = torch.tensor([1, 0])


def uniforms(**given):
    """Nothing happens, but what is given: the place of a number and its value."""
    numbers = np.full((2, UNIFORMS), 0.99)
    numbers[:, 2] = 0.5  # no angle
    for place, value in given.items():
        numbers[:, int(place[1:])] = value
    return numbers


def test_without_any_change_everything_stays():
    images, masks = augment_batch(IMAGES, MASKS, uniforms(), SETTINGS, flips=True)
    assert torch.allclose(images, IMAGES, atol=1e-5)
    assert torch.equal(masks, MASKS)


@pytest.mark.parametrize(("place", "axis"), [("u0", -1), ("u1", -2)])
def test_flips_turn_image_and_mask_together(place, axis):
    images, masks = augment_batch(IMAGES, MASKS, uniforms(**{place: 0.1}), SETTINGS, flips=True)
    assert torch.allclose(images, IMAGES.flip(axis), atol=1e-5)
    assert torch.equal(masks, MASKS.flip(axis))
    same, _ = augment_batch(IMAGES, MASKS, uniforms(**{place: 0.1}), SETTINGS, flips=False)
    assert torch.allclose(same, IMAGES, atol=1e-5)


def test_a_label_stays_and_a_rotation_keeps_the_middle():
    settings = SETTINGS.model_copy(update={"rotation": 90.0})
    images, labels = augment_batch(IMAGES, LABELS, uniforms(u2=1.0), settings, flips=False)
    assert torch.equal(labels, LABELS)
    turned = [torch.allclose(images, IMAGES.rot90(k, (2, 3)), atol=1e-4) for k in (1, 3)]
    assert sum(turned) == 1


def test_gamma_is_a_power_and_contrast_stretches_about_the_mean():
    changed, _ = augment_batch(IMAGES, MASKS, uniforms(u5=0.1, u10=0.0), SETTINGS, flips=False)
    assert torch.allclose(changed, IMAGES**0.5, atol=1e-5)
    half, _ = augment_batch(IMAGES, MASKS, uniforms(u6=0.1, u11=0.0), SETTINGS, flips=False)
    mean = IMAGES.mean((1, 2, 3), keepdim=True)
    assert torch.allclose(half, mean + (IMAGES - mean) / 2, atol=1e-5)


def test_a_zoom_shows_a_part_of_the_image():
    settings = SETTINGS.model_copy(update={"zoom": 2.0})
    given = uniforms(u4=0.1, u7=1.0, u8=0.0, u9=0.0)
    image = torch.zeros(2, 3, 16, 16)
    image[:, :, :8, :8] = 1  # the upper left quarter fills everything
    changed, masks = augment_batch(image, image[:, 0], given, settings, flips=False)
    assert changed.min() > 0.49
    assert masks.min() == 1
