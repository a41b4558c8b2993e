import json
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from echostill.platform.errors import UsageError
from echostill.platform.models import (
    Encoder,
    create_encoder,
    describe_models,
    gflops,
    gflops_paper,
    model_names,
    parameters,
)
from echostill.platform.models.registry import sincos_position_embedding

MICRO = ("usfm-micro", "tinyusfm-micro")


def seeded(name, seed=0, **options):
    """An encoder none of whose parameters is at a special value such as 0 or 1."""
    torch.manual_seed(seed)
    encoder = create_encoder(name, **options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return encoder


def on_meta(name):
    with torch.device("meta"):
        return create_encoder(name)


def state(encoder):
    return {key: value.clone() for key, value in encoder.backbone.state_dict().items()}


def same(encoder, tensors):
    own = encoder.backbone.state_dict()
    return own.keys() == tensors.keys() and all(torch.equal(own[key], tensors[key]) for key in own)


# --- the encoder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MICRO)
def test_output_shapes_and_layers(name):
    encoder = seeded(name)
    pixels = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        output = encoder(pixels, (6, 2, 6))
        plain = encoder(pixels)
    assert output.tokens.shape == (2, 65, encoder.dim)
    assert output.pooled.shape == (2, encoder.dim)
    assert [tokens.shape for tokens in output.intermediate] == [(2, 65, encoder.dim)] * 3
    assert torch.equal(output.intermediate[0], output.intermediate[2])
    assert not torch.equal(output.intermediate[0], output.intermediate[1])
    torch.testing.assert_close(plain.tokens, output.tokens)
    torch.testing.assert_close(plain.pooled, output.pooled)
    assert plain.intermediate == ()
    assert (encoder.prefix_tokens, encoder.patch_size, encoder.depth) == (1, 16, 6)
    assert encoder.third_layers() == (2, 4, 6)


@pytest.mark.parametrize("name", MICRO)
def test_intermediate_is_the_raw_block_output(name):
    encoder = seeded(name)
    seen = {}
    for index, block in enumerate(encoder.backbone.blocks):
        block.register_forward_hook(
            lambda module, inputs, output, index=index: seen.update({index + 1: output})
        )
    with torch.no_grad():
        output = encoder(torch.rand(1, 3, 128, 128), (1, 3, 6))
    for layer, tokens in zip((1, 3, 6), output.intermediate, strict=True):
        assert torch.equal(tokens, seen[layer])


@pytest.mark.parametrize("name", MICRO)
def test_pooled_is_the_norm_of_the_mean_of_the_patches(name):
    encoder = seeded(name)
    with torch.no_grad():
        output = encoder(torch.rand(2, 3, 128, 128))
    mean = output.tokens[:, 1:].double().mean(dim=1)
    centred = mean - mean.mean(dim=1, keepdim=True)
    expected = centred / (centred.pow(2).mean(dim=1, keepdim=True) + 1e-6).sqrt()
    norm = encoder.backbone.fc_norm
    expected = expected * norm.weight.double() + norm.bias.double()
    torch.testing.assert_close(output.pooled.double(), expected, rtol=1e-5, atol=1e-5)


def test_pixels_are_normalised_inside():
    encoder = create_encoder("tinyusfm-micro")
    assert encoder.mean == (0.485, 0.456, 0.406)
    pixels = torch.tensor(encoder.mean).view(1, 3, 1, 1).expand(1, 3, 128, 128)
    assert torch.equal(encoder.normalise(pixels), torch.zeros(1, 3, 128, 128))
    ones = encoder.normalise(pixels + torch.tensor(encoder.std).view(1, 3, 1, 1))
    torch.testing.assert_close(ones, torch.ones(1, 3, 128, 128))
    assert not [key for key in encoder.state_dict() if "mean" in key or "std" in key]


@pytest.mark.parametrize("name", MICRO)
def test_deterministic_and_picklable(name):
    first, second = seeded(name, seed=3), seeded(name, seed=3)
    pixels = torch.rand(1, 3, 128, 128)
    copy = pickle.loads(pickle.dumps(first))
    with torch.no_grad():
        assert torch.equal(first(pixels).pooled, second(pixels).pooled)
        assert torch.equal(first(pixels).pooled, copy(pixels).pooled)


def test_another_image_size():
    encoder = seeded("usfm-micro", image_size=64)
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 64, 64)).tokens.shape == (1, 17, 128)
    with pytest.raises(UsageError, match="multiple of its patch size 16, such as 96"):
        create_encoder("usfm-micro", image_size=100)
    with pytest.raises(UsageError, match="positive"):
        create_encoder("usfm-micro", image_size=0)


def test_wrong_input_is_named():
    encoder = create_encoder("tinyusfm-micro")
    with pytest.raises(UsageError, match=r"\(batch, 3, 128, 128\), not \(1, 1, 128, 128\)"):
        encoder(torch.rand(1, 1, 128, 128))
    with pytest.raises(UsageError, match="128x128 pixels, not 64x64"):
        encoder(torch.rand(1, 3, 64, 64))
    for layer in (0, 7):
        with pytest.raises(UsageError, match=f"no layer {layer}: it has 6 blocks"):
            encoder(torch.rand(1, 3, 128, 128), (layer,))


def test_position_embedding_against_a_loop():
    dim, grid = 16, 3
    expected = np.zeros((1 + grid * grid, dim))
    for row in range(grid):
        for column in range(grid):
            for k in range(dim // 4):
                omega = 10000.0 ** (-k / (dim / 4))
                patch = expected[1 + row * grid + column]
                patch[k] = np.sin(column * omega)
                patch[dim // 4 + k] = np.cos(column * omega)
                patch[dim // 2 + k] = np.sin(row * omega)
                patch[3 * dim // 4 + k] = np.cos(row * omega)
    found = sincos_position_embedding(dim, grid)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_position_embedding(18, 3)
    encoder = create_encoder("tinyusfm-micro")
    assert torch.equal(encoder.backbone.pos_embed, sincos_position_embedding(64, 8))


# --- the zoo -------------------------------------------------------------------------------------


def test_names():
    assert model_names() == ["usfm", "tinyusfm", "usfm-micro", "tinyusfm-micro"]
    with pytest.raises(UsageError, match="Did you mean 'tinyusfm'"):
        create_encoder("tinyusmf")
    with pytest.raises(UsageError, match="Did you mean 'timm:resnet50'"):
        create_encoder("resnet50")
    with pytest.raises(UsageError, match="Did you mean 'timm:vit_tiny_patch16_224'"):
        create_encoder("timm:vit_tny_patch16_224")


def test_timm_vision_transformer_keeps_its_own_normalisation():
    encoder = create_encoder("timm:test_vit", image_size=32).eval()
    assert encoder.mean == tuple(encoder.backbone.pretrained_cfg["mean"])
    assert encoder.std == tuple(encoder.backbone.pretrained_cfg["std"])
    with torch.no_grad():
        output = encoder(torch.rand(2, 3, 32, 32), (1, encoder.depth))
    assert output.tokens.shape == (2, 5, encoder.dim)
    assert output.intermediate[0].shape == (2, 5, encoder.dim)
    final = encoder.backbone.norm(output.intermediate[1])
    torch.testing.assert_close(output.tokens, final)
    torch.testing.assert_close(output.pooled, final[:, 1:].mean(dim=1))


def test_timm_feature_maps_become_tokens():
    encoder = create_encoder("timm:test_resnet", image_size=64).eval()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        output = encoder(pixels, (encoder.depth,))
        feature_map = encoder.backbone.forward_features(encoder.normalise(pixels))
    assert encoder.prefix_tokens == 0
    assert output.tokens.shape == (2, (64 // encoder.patch_size) ** 2, encoder.dim)
    assert torch.equal(output.tokens[:, 1], feature_map[:, :, 0, 1])
    torch.testing.assert_close(output.pooled, feature_map.mean(dim=(2, 3)))
    torch.testing.assert_close(output.intermediate[0], output.tokens)


def test_a_model_without_features_is_refused():
    with pytest.raises(UsageError, match=r"'plain' cannot be an encoder: it has no forward_feat"):
        Encoder(nn.Linear(2, 2), name="plain", image_size=32)


# --- what they cost ------------------------------------------------------------------------------


def test_published_figures():
    rows = {row["name"]: row for row in describe_models()}
    assert list(rows) == model_names()
    assert rows["tinyusfm"]["parameters"] == 5_524_416
    assert rows["tinyusfm"]["gflops_paper"] == pytest.approx(2.15, abs=0.02)
    head = 768 * 1000 + 1000
    assert rows["usfm"]["parameters"] + head == 86_530_984
    assert rows["usfm"]["gflops_paper"] == pytest.approx(33.7, abs=0.2)
    assert rows["usfm"]["image_size"] == 224
    json.dumps(list(rows.values()))


@pytest.mark.parametrize("name", model_names())
def test_operations_against_the_layer_formulas(name):
    encoder = on_meta(name)
    patches = (encoder.image_size // 16) ** 2
    tokens, dim, depth = patches + 1, encoder.dim, encoder.depth
    linear = patches * 3 * 16 * 16 * dim + depth * tokens * 12 * dim * dim
    attention = depth * 2 * tokens * tokens * dim
    assert gflops_paper(encoder) == pytest.approx(2 * linear / 1e9, rel=1e-9)
    assert gflops(encoder) == pytest.approx(2 * (linear + attention) / 1e9, rel=1e-9)


@pytest.mark.parametrize("name", model_names())
def test_the_list_says_what_is_counted_on_the_built_encoder(name):
    encoder = on_meta(name)
    (row,) = [row for row in describe_models() if row["name"] == name]
    assert row == {
        "name": name,
        "parameters": parameters(encoder),
        "gflops_paper": round(gflops_paper(encoder), 4),
        "gflops": round(gflops(encoder), 4),
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "dim": encoder.dim,
        "depth": encoder.depth,
    }


def test_counting_leaves_the_encoder_as_it_was():
    encoder = create_encoder("tinyusfm-micro").train()
    before = state(encoder)
    gflops(encoder)
    assert encoder.training
    assert same(encoder, before)
    assert parameters(encoder) == sum(parameter.numel() for parameter in encoder.parameters())
