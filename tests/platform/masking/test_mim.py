import numpy as np
import pytest
import torch
from pydantic import ValidationError

from echostill.platform.masking.masks import MaskSettings, apply_both, apply_spatial, draw_masks
from echostill.platform.masking.mim import (
    DecoderSettings,
    MaskedImageModel,
    ReconstructionSettings,
    focal_frequency_loss,
    frequency_reconstruction_loss,
    joint_reconstruction,
    patchify,
    separated_losses,
    separated_reconstruction,
    spatial_reconstruction_loss,
    to_pixels,
    unpatchify,
)
from echostill.platform.models import create_encoder

SIZE, PATCH = 64, 16


def masks_for(batch, size=SIZE, patch=PATCH, seed=0):
    ids = [f"image {index}" for index in range(batch)]
    return draw_masks(MaskSettings().scaled_to(size, patch), seed, np.zeros(batch, int), ids)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MaskedImageModel(create_encoder("tinyusfm-micro", image_size=SIZE))


def test_patches_hold_rows_of_pixels_with_channels_last():
    images = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    patches = patchify(images, 4)
    assert patches.shape == (2, 4, 48)
    assert patches[1, 2, (1 * 4 + 3) * 3 + 2] == images[1, 2, 4 + 1, 0 + 3]
    assert torch.equal(unpatchify(patches, 4), images)


@pytest.mark.parametrize("pixel", ["l1", "mse", "normalised-mse"])
def test_pixel_loss_is_the_mean_over_hidden_pixels(pixel):
    generator = np.random.default_rng(3)
    pixels = generator.random((3, 3, 16, 16))
    image = generator.random((3, 3, 16, 16))
    mask = generator.random((3, 16, 16)) < [[[0.5]], [[0.1]], [[0.0]]]  # any pixels, not blocks
    prediction = patchify(torch.tensor(image), 8)
    got = spatial_reconstruction_loss(
        prediction, torch.tensor(pixels), torch.tensor(mask), 8, pixel
    )
    for index in range(3):
        errors = []
        for y in range(16):
            for x in range(16):
                if not mask[index, y, x]:
                    continue
                top, left = y // 8 * 8, x // 8 * 8
                patch = pixels[index, :, top : top + 8, left : left + 8]
                for channel in range(3):
                    target = pixels[index, channel, y, x]
                    if pixel == "normalised-mse":
                        target = (target - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
                    error = image[index, channel, y, x] - target
                    errors.append(abs(error) if pixel == "l1" else error**2)
        assert got[index].item() == pytest.approx(np.mean(errors) if errors else 0, rel=1e-9)


@pytest.mark.parametrize("pixel", ["l1", "mse", "normalised-mse"])
def test_one_mask_for_the_batch_gives_what_a_mask_for_each_gives(pixel):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(5, 3, 32, 32, generator=generator)
    prediction = torch.rand(5, 16, 192, generator=generator, requires_grad=True)
    one = (torch.rand(1, 32, 32, generator=generator) < 0.4).expand(5, -1, -1)
    found = []
    for mask in (one, one.contiguous()):
        losses = spatial_reconstruction_loss(prediction, pixels, mask, 8, pixel)
        found.append((losses, *torch.autograd.grad(losses.sum(), prediction)))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_frequency_loss_is_the_mean_over_stopped_frequencies():
    generator = np.random.default_rng(4)
    pixels, image = generator.random((2, 2, 3, 32, 32))
    passing = masks_for(2, 32).frequency
    passing[1] = True
    got = frequency_reconstruction_loss(torch.tensor(image), torch.tensor(pixels), passing)
    distance = np.abs(
        np.fft.fftshift(
            np.fft.fft2(image, norm="ortho") - np.fft.fft2(pixels, norm="ortho"), axes=(-2, -1)
        )
    )
    stopped = ~passing.numpy()
    expected = np.mean([distance[0, channel][stopped[0]].mean() for channel in range(3)])
    np.testing.assert_allclose(got.numpy(), [expected, 0], rtol=1e-10)


def test_focal_loss_weighs_hard_frequencies_more():
    generator = np.random.default_rng(5)
    pixels, image = generator.random((2, 2, 3, 16, 16))
    given = torch.tensor(image, requires_grad=True)
    got = focal_frequency_loss(given, torch.tensor(pixels))
    spectrum = np.abs(np.fft.fft2(image - pixels, norm="ortho"))
    weight = np.log1p(spectrum)
    weight /= weight.max(axis=(2, 3), keepdims=True)
    expected = (weight * spectrum**2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-10)
    # The weight is detached: scaling the difference by 1 + s changes only the square.
    (gradient,) = torch.autograd.grad(got[0], given)
    slope = (gradient[0] * torch.tensor(image - pixels)[0]).sum()
    assert slope.item() == pytest.approx(2 * expected[0], rel=1e-9)


def test_perfect_reconstruction_costs_nothing():
    pixels = torch.rand(2, 3, SIZE, SIZE, dtype=torch.float64)
    perfect = patchify(pixels, PATCH)
    for pixel in ("l1", "mse", "normalised-mse"):
        predicted = perfect
        if pixel == "normalised-mse":
            variance, mean = torch.var_mean(perfect, dim=2, keepdim=True)
            predicted = (perfect - mean) / (variance + 1e-6).sqrt()
        torch.testing.assert_close(to_pixels(predicted, pixels, PATCH, pixel), pixels)
        for frequency in ("stopped", "focal"):
            settings = ReconstructionSettings(pixel=pixel, frequency=frequency)
            losses = separated_losses(predicted, predicted, pixels, masks_for(2), PATCH, settings)
            torch.testing.assert_close(losses.loss, torch.zeros(2, dtype=torch.float64))


def test_model_predicts_a_patch_per_token_from_its_hidden_state(model):
    output = model(torch.rand(2, 3, SIZE, SIZE), layers=(2, 6))
    assert output.prediction.shape == (2, 16, 768)
    assert output.hidden.shape == (2, 16, 96)
    assert [tokens.shape for tokens in output.encoded.intermediate] == [(2, 17, 64)] * 2
    torch.testing.assert_close(output.prediction, model.decoder.prediction(output.hidden))


def test_recipes_corrupt_as_they_say(model):
    model.eval()
    pixels = torch.rand(3, 3, SIZE, SIZE)
    masks = masks_for(3)
    settings = ReconstructionSettings(frequency_weight=0.5)
    with torch.no_grad():
        joint = joint_reconstruction(model, pixels, masks, settings)
        separated = separated_reconstruction(model, pixels, masks, settings)
        one = model(apply_both(pixels, masks)).prediction
        two = model(apply_spatial(pixels, masks.spatial)).prediction
    torch.testing.assert_close(
        joint.spatial, spatial_reconstruction_loss(one, pixels, masks.spatial, PATCH)
    )
    torch.testing.assert_close(
        separated.spatial, spatial_reconstruction_loss(two, pixels, masks.spatial, PATCH)
    )
    for losses in (joint, separated):
        assert losses.loss.shape == (3,)
        torch.testing.assert_close(losses.loss, losses.spatial + 0.5 * losses.frequency)
        torch.testing.assert_close(losses.mean, losses.loss.mean())


def test_an_image_does_not_feel_its_batch(model):
    model.eval()
    pixels, masks = torch.rand(3, 3, SIZE, SIZE), masks_for(3)
    with torch.no_grad():
        whole = separated_reconstruction(model, pixels, masks, ReconstructionSettings()).loss
        alone = separated_reconstruction(
            model, pixels[2:], type(masks)(*(m[2:] for m in masks)), ReconstructionSettings()
        ).loss
    torch.testing.assert_close(whole[2:], alone)


@pytest.mark.slow
def test_training_lowers_the_loss():
    torch.manual_seed(1)
    own = MaskedImageModel(create_encoder("tinyusfm-micro", image_size=SIZE))
    optimiser = torch.optim.AdamW(own.parameters(), lr=1e-3)
    ramp = torch.linspace(0, 1, SIZE).expand(4, 3, SIZE, SIZE).contiguous()
    masks, losses = masks_for(4), []
    for _ in range(15):
        loss = separated_reconstruction(own, ramp, masks, ReconstructionSettings()).mean
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_heads_must_divide_the_width():
    with pytest.raises(ValidationError, match="must divide dim"):
        DecoderSettings(heads=5)
