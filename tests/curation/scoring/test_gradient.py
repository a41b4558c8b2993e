import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.curation.scoring.gradient import outer_product_norms, prediction_gradient_norms
from echostill.platform.masking.masks import Masks, MaskSettings, apply_spatial, draw_masks
from echostill.platform.masking.mim import (
    DecoderSettings,
    MaskedImageModel,
    ReconstructionSettings,
    separated_reconstruction,
    spatial_reconstruction_loss,
)
from echostill.platform.models import create_encoder

SIZE, PATCH, BATCH = 64, 16, 4


def proxy_of(dim=24, dtype=torch.float32):
    torch.manual_seed(0)
    encoder = create_encoder("tinyusfm-micro", image_size=SIZE)
    return MaskedImageModel(encoder, DecoderSettings(dim=dim)).to(dtype).eval()


def batch_of(dtype, loose=False):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    ids = [str(index) for index in range(BATCH)]
    masks = draw_masks(MaskSettings().scaled_to(SIZE), 0, np.zeros(BATCH, int), ids)
    if loose:  # single pixels, in uneven numbers, instead of whole blocks
        share = torch.rand(BATCH, 1, 1, generator=generator)
        masks = Masks(torch.rand(BATCH, SIZE, SIZE, generator=generator) < share, masks.frequency)
    return pixels, masks


def autograd_norms(proxy, pixels, masks, loss, reconstruction):
    """Per-sample gradients the slow way: one image, one backward pass through the network."""
    norms, losses = [], []
    for index in range(len(pixels)):
        one = pixels[index : index + 1]
        own = Masks(*(mask[index : index + 1] for mask in masks))
        if loss == "separated":
            value = separated_reconstruction(proxy, one, own, reconstruction).loss.sum()
        else:
            prediction = proxy(apply_spatial(one, own.spatial)).prediction
            value = spatial_reconstruction_loss(prediction, one, own.spatial, PATCH, loss).sum()
        (gradient,) = torch.autograd.grad(value, proxy.decoder.prediction.weight)
        norms.append(gradient.double().norm())
        losses.append(value.detach())
    return torch.stack(norms), torch.stack(losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize(
    ("loss", "reconstruction"),
    [
        ("mse", ReconstructionSettings()),
        ("l1", ReconstructionSettings()),
        ("normalised-mse", ReconstructionSettings()),
        ("separated", ReconstructionSettings(frequency_weight=0.7)),
        ("separated", ReconstructionSettings(pixel="normalised-mse", frequency="focal")),
    ],
)
def test_norms_are_those_of_autograd(dtype, loose, loss, reconstruction):
    proxy = proxy_of(dtype=dtype)
    pixels, masks = batch_of(dtype, loose)
    norms, losses = prediction_gradient_norms(proxy, pixels, masks, loss, reconstruction)
    expected_norms, expected_losses = autograd_norms(proxy, pixels, masks, loss, reconstruction)
    assert norms.dtype == losses.dtype == dtype
    np.testing.assert_allclose(norms.numpy(), expected_norms.numpy(), rtol=1e-5)
    np.testing.assert_allclose(losses.numpy(), expected_losses.numpy(), rtol=1e-5)
    assert all(parameter.grad is None for parameter in proxy.parameters())


def test_the_mean_squared_error_has_the_published_form():
    """g_i = || 2 / (|M| P) sum over hidden patches of e_t h_t^T ||, with whole patches hidden."""
    proxy = proxy_of(dtype=torch.float64)
    pixels, masks = batch_of(torch.float64)
    with torch.no_grad():
        output = proxy(apply_spatial(pixels, masks.spatial))
    norms, _ = prediction_gradient_norms(proxy, pixels, masks)
    for index in range(BATCH):
        total, hidden = np.zeros((768, 24)), 0
        for token in range(16):
            row, column = token // 4 * PATCH, token % 4 * PATCH
            if not masks.spatial[index, row, column]:
                continue
            patch = pixels[index, :, row : row + PATCH, column : column + PATCH]
            error = output.prediction[index, token] - patch.permute(1, 2, 0).flatten()
            total += np.outer(error, output.hidden[index, token])
            hidden += 1
        expected = np.linalg.norm(2 / (hidden * 768) * total)
        assert norms[index].item() == pytest.approx(expected, rel=1e-10)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_both_forms_give_the_norm_of_the_summed_outer_products(batch, tokens, values, width):
    generator = np.random.default_rng(tokens * 1000 + values * 40 + width)
    g = generator.normal(size=(batch, tokens, values))
    h = generator.normal(size=(batch, tokens, width)) + 1
    expected = [np.linalg.norm(one.T @ other) for one, other in zip(g, h, strict=True)]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        got = outer_product_norms(torch.tensor(g, dtype=dtype), torch.tensor(h, dtype=dtype))
        assert got.dtype == dtype
        np.testing.assert_allclose(got.numpy(), expected, rtol=tolerance)
    assert outer_product_norms(torch.zeros(1, 2, 3), torch.ones(1, 2, 3)) == 0


def test_it_runs_in_inference_mode_and_for_half_precision_features():
    proxy = proxy_of()
    pixels, masks = batch_of(torch.float32)
    expected, _ = prediction_gradient_norms(proxy, pixels, masks)
    with torch.inference_mode():
        inside = pixels.clone()
        got, _ = prediction_gradient_norms(proxy, inside, masks)
    torch.testing.assert_close(got, expected)
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = prediction_gradient_norms(proxy, pixels, masks)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, expected, rtol=0.05, atol=0)


def test_an_image_with_nothing_hidden_pulls_on_nothing():
    proxy = proxy_of()
    pixels, masks = batch_of(torch.float32)
    open_masks = Masks(torch.zeros_like(masks.spatial), torch.ones_like(masks.frequency))
    for loss in ("mse", "l1", "separated"):
        norms, losses = prediction_gradient_norms(proxy, pixels, open_masks, loss)
        assert norms.abs().max() == losses.abs().max() == 0
