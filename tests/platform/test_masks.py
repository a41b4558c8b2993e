import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from echostill.platform.masks import (
    FrequencyMask,
    Masks,
    MaskSettings,
    SpatialMask,
    apply_both,
    apply_frequency,
    apply_spatial,
    band_map,
    draw_masks,
    frequency_mask,
    spatial_mask,
)


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


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**32))
def test_spatial_mask_is_its_definition(side, block, ratio, seed):
    mask = SpatialMask(ratio=ratio, block_size=block, image_size=side * block)
    uniforms = np.random.default_rng(seed).random((3, mask.count)).round(1)  # with ties
    made = spatial_mask(uniforms, mask).numpy()
    for row, got in zip(uniforms, made, strict=True):
        np.testing.assert_array_equal(got, literal_spatial(row, side * block, block, ratio))


@settings(deadline=None, max_examples=50)
@given(
    st.integers(8, 41),
    st.integers(0, 4),
    st.integers(1, 6),
    st.floats(0.05, 1.5),
    st.integers(1, 8),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_frequency_mask_is_its_definition(size, center, width, factor, largest, ratio, seed):
    base = center + width
    if int(base * factor) < 1 or base > size / 2:
        with pytest.raises(ValidationError):
            FrequencyMask(
                center_protect=center, base_bandwidth=base, increase_factor=factor, image_size=size
            )
        return
    mask = FrequencyMask(
        ratio=ratio,
        center_protect=center,
        base_bandwidth=base,
        increase_factor=factor,
        max_increase=largest,
        image_size=size,
    )
    radii = literal_radii(size, center, base, factor, largest)
    assert list(mask.radii) == radii
    uniforms = np.random.default_rng(seed).random((2, mask.count))
    made = frequency_mask(uniforms, mask).numpy()
    for row, got in zip(uniforms, made, strict=True):
        np.testing.assert_array_equal(got, literal_frequency(row, size, radii, ratio))


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
