import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from echostill.platform.masking.masks import (
    FrequencyMask,
    Masks,
    MaskSettings,
    SpatialMask,
    apply_both,
    apply_frequency,
    apply_spatial,
    band_map,
    choose_masks,
    draw_masks,
    frequency_mask,
    spatial_mask,
)
from echostill.platform.seeding import unit_uniforms

LIMITS = ((8, 41), (0, 5), (0, 7), (1, 9))  # image size, centre, first width, largest increase


def smallest(row, chosen):
    """Indices of the smallest numbers, ties to the earlier one."""
    return sorted(range(len(row)), key=lambda index: (row[index], index))[:chosen]


def literal_spatial(row, size, block, ratio):
    side = size // block
    chosen = smallest(row, int(np.ceil(ratio * side * side)))
    mask = np.zeros((size, size), dtype=bool)
    for y in range(size):
        for x in range(size):
            if (y // block) * side + x // block in chosen:
                mask[y, x] = True
    return mask


def literal_radii(size, center, base, factor, largest):
    radii, radius = [center], base
    while radius <= size / 2:
        radii.append(radius)
        radius = radius + min(int(radius * factor), largest)
    return radii


def literal_frequency(row, size, radii, ratio):
    bands = len(radii) - 1
    chosen = smallest(row, int(ratio * bands))
    mask = np.ones((size, size), dtype=bool)
    for y in range(size):
        for x in range(size):
            distance = math.hypot(y - size // 2, x - size // 2)
            for band in chosen:
                if radii[band] < distance <= radii[band + 1]:
                    mask[y, x] = False
    return mask


@pytest.mark.slow
def test_masks_are_their_definitions_for_a_thousand_configurations():
    random = np.random.default_rng(0)
    for _ in range(500):
        side, block = random.integers(1, 6, 2)
        mask = SpatialMask(
            ratio=float(random.random()), block_size=int(block), image_size=int(side * block)
        )
        uniforms = random.random((2, mask.count)).round(1)  # with ties
        made = spatial_mask(uniforms, mask).numpy()
        for row, got in zip(uniforms, made, strict=True):
            expected = literal_spatial(row, mask.image_size, mask.block_size, mask.ratio)
            np.testing.assert_array_equal(got, expected)
    refused = 0
    for _ in range(500):
        size, center, width, largest = (int(random.integers(*ends)) for ends in LIMITS)
        base, factor = center + width, float(random.uniform(0.05, 1.5))
        values = {
            "ratio": float(random.random()),
            "center_protect": center,
            "base_bandwidth": base,
            "increase_factor": factor,
            "max_increase": largest,
            "image_size": size,
        }
        if width < 1 or int(base * factor) < 1 or base > size / 2:
            refused += 1
            with pytest.raises(ValidationError):
                FrequencyMask(**values)
            continue
        mask = FrequencyMask(**values)
        radii = literal_radii(size, center, base, factor, largest)
        assert list(mask.radii) == radii
        uniforms = random.random((1, mask.count))
        got = frequency_mask(uniforms, mask).numpy()[0]
        np.testing.assert_array_equal(got, literal_frequency(uniforms[0], size, radii, mask.ratio))
    assert 50 < refused < 350  # the published generator's traps among them


def published_frequency(size, center, base, factor, largest, bands):
    """The published generator's own doing, with the bands that its random draw would choose.

    A band is a disc of the outer radius less one of the inner radius; where the first band is empty
    or inverted the difference is not 0 or 1, and a growth of 0 never ends.
    """
    radii = [center, base]
    while radii[-1] + min(int(radii[-1] * factor), largest) <= size / 2:
        assert int(radii[-1] * factor) >= 1, "an endless loop"
        radii.append(radii[-1] + min(int(radii[-1] * factor), largest))
    discs = [
        np.array(
            [
                [1.0 if math.hypot(y - size // 2, x - size // 2) <= radius else 0.0
                 for x in range(size)]
                for y in range(size)
            ]
        )
        for radius in radii
    ]  # fmt: skip
    mask = np.ones((size, size))
    for band in bands:
        mask *= 1 - (discs[band + 1] - discs[band])
    return mask


def test_what_is_refused_is_what_the_published_generator_does_wrongly():
    doubling = published_frequency(40, 9, 8, 0.5, 4, [0])
    assert doubling.max() == 2  # and so base_bandwidth must exceed center_protect
    with pytest.raises(ValidationError, match="larger than center_protect"):
        FrequencyMask(center_protect=9, base_bandwidth=8, increase_factor=0.5, image_size=40)
    with pytest.raises(AssertionError, match="endless"):
        published_frequency(40, 3, 5, 0.1, 4, [0])
    with pytest.raises(ValidationError, match="would never grow"):
        FrequencyMask(center_protect=3, base_bandwidth=5, increase_factor=0.1, image_size=40)
    mask = FrequencyMask(
        ratio=0.5, center_protect=2, base_bandwidth=4, increase_factor=0.5, image_size=40
    )
    uniforms = np.random.default_rng(5).random((1, mask.count))
    bands = smallest(uniforms[0], mask.stopped)
    published = published_frequency(40, 2, 4, 0.5, mask.max_increase, bands)
    np.testing.assert_array_equal(frequency_mask(uniforms, mask).numpy()[0], published == 1)


def test_default_radii_are_the_worked_example():
    assert FrequencyMask().radii == (8, 12, 15, 18, 22, 27, 33, 41, 51, 63, 78, 94, 110)
    wide = FrequencyMask(center_protect=10, base_bandwidth=20, increase_factor=0.5, max_increase=20)
    assert wide.radii == (10, 20, 30, 45, 65, 85, 105)
    assert (FrequencyMask().count, FrequencyMask().stopped) == (12, 5)
    assert (SpatialMask().count, SpatialMask().hidden) == (49, 30)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base_bandwidth": 8}, "larger than center_protect"),
        ({"increase_factor": 0.05}, "would never grow"),
        ({"base_bandwidth": 113}, "beyond half of image_size"),
        ({"ratio": 1.5}, "less than or equal to 1"),
        ({"radius": 3}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, words):
    with pytest.raises(ValidationError, match=words):
        FrequencyMask(**change)


def test_blocks_that_do_not_fill_the_image_are_refused():
    with pytest.raises(ValidationError, match="does not divide"):
        SpatialMask(block_size=30)


@pytest.mark.parametrize(
    ("size", "patch", "block"), [(224, 16, 32), (128, 16, 32), (64, 8, 16), (80, 16, 16)]
)
def test_scaled_masks_stay_valid(size, patch, block):
    scaled = MaskSettings().scaled_to(size, patch)
    assert scaled.spatial.block_size == block
    assert scaled.frequency.image_size == scaled.spatial.image_size == size
    assert scaled.frequency.count >= 6
    assert scaled.frequency.stopped >= 2
    assert scaled.scaled_to(size, patch) == scaled


@pytest.mark.parametrize("size", [16, 24, 32, 48, 96, 112, 192, 256, 384, 512])
def test_frequency_mask_scales_to_any_usual_size(size):
    scaled = FrequencyMask().scaled_to(size)
    assert scaled.count >= 3
    assert scaled.radii[-1] > 0.7 * size / 2


def test_a_mask_depends_on_its_own_numbers_alone():
    mask = FrequencyMask().scaled_to(64)
    uniforms = np.random.default_rng(0).random((5, mask.count))
    together = frequency_mask(uniforms, mask)
    assert torch.equal(together[3:4], frequency_mask(uniforms[3:4], mask))
    assert torch.equal(together[[4, 0]], frequency_mask(torch.tensor(uniforms[[4, 0]]), mask))


def test_draws_follow_seed_epoch_image_and_draw():
    masks = MaskSettings().scaled_to(64, 8)
    ids = ["a", "b", "c"]
    first = draw_masks(masks, 1, np.array([0, 0, 2]), ids)
    alone = draw_masks(masks, 1, np.array([2]), ["c"])
    assert torch.equal(first.spatial[2:], alone.spatial)
    assert torch.equal(first.frequency[2:], alone.frequency)
    for other in (
        draw_masks(masks, 2, np.array([2]), ["c"]),
        draw_masks(masks, 1, np.array([1]), ["c"]),
        draw_masks(masks, 1, np.array([2]), ["d"]),
        draw_masks(masks, 1, np.array([2]), ["c"], draw=1),
    ):
        assert not torch.equal(other.spatial, alone.spatial)


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_masks_drawn_on_a_device_are_their_definition_for_a_thousand_views(device):
    """Chosen on the CPU from numbers of each view, drawn out on the device: the same to the bit."""
    settings, rng = MaskSettings().scaled_to(32, 4), np.random.default_rng(7)
    radii, block = settings.frequency.radii, settings.spatial.block_size
    distance = np.hypot(*np.meshgrid(*[np.arange(32) - 16] * 2, indexing="ij"))
    for seed in range(10):
        epochs, ids = rng.integers(0, 400, 100), [f"{n:x}" for n in rng.integers(0, 2**60, 100)]
        masks = choose_masks(settings, seed, epochs, ids, draw=seed % 3).masks(settings, device)
        assert {mask.device.type for mask in masks} == {device}
        for row, (epoch, image_id) in enumerate(zip(epochs.tolist(), ids, strict=True)):
            hidden, stopped = (
                smallest(unit_uniforms(seed, epoch, [image_id], f"{view} mask {seed % 3}", n)[0], k)
                for view, n, k in (
                    ("spatial", settings.spatial.count, settings.spatial.hidden),
                    ("frequency", settings.frequency.count, settings.frequency.stopped),
                )
            )
            blocks = np.isin(np.arange(settings.spatial.count), hidden)
            side = settings.spatial.side
            expected = np.kron(blocks.reshape(side, side), np.ones((block, block), dtype=bool))
            np.testing.assert_array_equal(masks.spatial[row].cpu(), expected)
            rings = [(distance > radii[k]) & (distance <= radii[k + 1]) for k in stopped]
            np.testing.assert_array_equal(masks.frequency[row].cpu(), ~np.any(rings, axis=0))


def test_wrong_count_of_uniforms_is_refused():
    with pytest.raises(ValueError, match=r"\(B, 49\)"):
        spatial_mask(np.zeros((2, 48)), SpatialMask())


def test_band_map_is_made_once():
    assert band_map(FrequencyMask()) is band_map(FrequencyMask(ratio=0.45))


def test_hidden_pixels_become_the_mean_of_their_channel():
    pixels = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    settings_ = SpatialMask(block_size=2, image_size=8)
    mask = spatial_mask(np.random.default_rng(1).random((2, 16)), settings_)
    filled = apply_spatial(pixels, mask)
    for image in range(2):
        for channel in range(3):
            mean = pixels[image, channel].sum() / 64
            expected = torch.where(mask[image], mean, pixels[image, channel])
            torch.testing.assert_close(filled[image, channel], expected)


def test_stopped_bands_are_gone_and_the_rest_is_kept():
    settings_ = FrequencyMask().scaled_to(64)
    mask = frequency_mask(np.random.default_rng(2).random((2, settings_.count)), settings_)
    pixels = torch.rand(2, 3, 64, 64, dtype=torch.float64) * 0.2 + 0.4
    got = apply_frequency(pixels, mask)
    shifted = np.fft.fftshift(np.fft.fft2(pixels.numpy()), axes=(-2, -1))
    kept = shifted * mask.numpy()[:, None]
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(kept, axes=(-2, -1))))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
    # Far from zero the modulus changes nothing, so the spectrum is the masked one, mean included.
    np.testing.assert_allclose(
        np.fft.fftshift(np.fft.fft2(got.numpy()), axes=(-2, -1)), kept, atol=1e-9
    )
    torch.testing.assert_close(got.mean(dim=(2, 3)), pixels.mean(dim=(2, 3)))


def test_an_open_mask_changes_nothing():
    pixels = torch.rand(1, 3, 32, 32)
    masks = Masks(torch.zeros(1, 32, 32, dtype=torch.bool), torch.ones(1, 32, 32, dtype=torch.bool))
    torch.testing.assert_close(apply_both(pixels, masks), pixels, atol=1e-6, rtol=0)
    assert apply_frequency(pixels.bfloat16(), masks.frequency).dtype == torch.bfloat16
