"""Weights in other layouts: taken strictly by models that know nothing of echostill."""

import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from echostill.distill.exporting.forms import (
    timm_arguments,
    write_ours,
    write_published,
    write_timm,
)
from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder, load_weights

_SPEC = importlib.util.spec_from_file_location(
    "published_layout", Path(__file__).parents[1] / "published_layout.py"
)
published_layout = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(published_layout)

MICRO = {"size": 128, "dim": 64, "depth": 6, "heads": 4}


def seeded(name, seed=0, **options):
    torch.manual_seed(seed)
    encoder = create_encoder(name, **options).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return encoder


def equal(first, second):
    own, other = first.backbone.state_dict(), second.backbone.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def pooled(encoder, pixels):
    with torch.inference_mode():
        return encoder(pixels).pooled


@pytest.mark.parametrize(("name", "shape"), [("tinyusfm-micro", MICRO), ("tinyusfm", {})])
def test_the_published_layout_loads_strictly_into_a_fresh_published_model(tmp_path, name, shape):
    encoder = seeded(name)
    written = write_published(encoder, tmp_path, {})
    pixels = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    for file in written:
        path = tmp_path / file
        state = torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path)
        fresh = published_layout.TinyUSFM(**shape).eval()
        fresh.load_state_dict(state, strict=True)
        with torch.inference_mode():
            features = fresh(encoder.normalise(pixels))
        torch.testing.assert_close(features, pooled(encoder, pixels), rtol=1e-4, atol=1e-5)


def test_a_published_checkpoint_makes_the_round_trip(tmp_path):
    """Published model -> echostill -> published layout: not one bit changes."""
    torch.manual_seed(3)
    original = published_layout.TinyUSFM(**MICRO)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.copy_(torch.randn_like(parameter))
    # As its training saved it: wrapped for data-parallel training.
    wrapped = {f"module.{key}": value for key, value in original.state_dict().items()}
    torch.save(wrapped, tmp_path / "published.pth")
    encoder = create_encoder("tinyusfm-micro")
    load_weights(encoder, tmp_path / "published.pth")
    write_published(encoder, tmp_path, {})
    back = torch.load(tmp_path / "tinyusfm.pth", weights_only=True)
    assert back.keys() == original.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in original.state_dict().items())
    again = create_encoder("tinyusfm-micro")
    load_weights(again, tmp_path / "tinyusfm.pth")
    assert equal(encoder, again)


@pytest.mark.parametrize(
    ("name", "size"), [("tinyusfm-micro", None), ("usfm-micro", None), ("tinyusfm-micro", 64)]
)
def test_timm_alone_takes_the_state_dict(tmp_path, name, size):
    encoder = seeded(name, image_size=size)
    assert write_timm(encoder, tmp_path, {}) == ["timm.safetensors", "timm.json"]
    written = json.loads((tmp_path / "timm.json").read_text())
    model = timm.create_model(written["architecture"], **written["arguments"]).eval()
    model.load_state_dict(load_file(tmp_path / "timm.safetensors"), strict=True)
    pixels = torch.rand(2, 3, encoder.image_size, encoder.image_size)
    shift, scale = (torch.tensor(written[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        features = model((pixels - shift) / scale)
    torch.testing.assert_close(features, pooled(encoder, pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["usfm", "tinyusfm", "timm:vit_tiny_patch16_224", "timm:resnet18"])
def test_the_arguments_give_the_same_shapes(name):
    with torch.device("meta"):
        encoder = create_encoder(name)
        architecture, arguments = timm_arguments(encoder)
        made = timm.create_model(architecture, **arguments).state_dict()
    own = encoder.backbone.state_dict()
    assert {key: tuple(value.shape) for key, value in made.items()} == {
        key: tuple(value.shape) for key, value in own.items()
    }


def test_ours_says_which_model_it_is(tmp_path):
    encoder = seeded("tinyusfm-micro")
    assert write_ours(encoder, tmp_path, {"run": "student-0"}) == ["model.safetensors"]
    other = create_encoder("tinyusfm-micro")
    load_weights(other, tmp_path / "model.safetensors")
    assert equal(encoder, other)


@pytest.mark.parametrize("name", ["usfm-micro", "timm:test_vit"])
def test_the_published_layout_is_for_its_own_class(tmp_path, name):
    with pytest.raises(UsageError, match=r"no TinyUSFM layout.*tinyusfm"):
        write_published(create_encoder(name), tmp_path, {})
    assert not list(tmp_path.iterdir())
