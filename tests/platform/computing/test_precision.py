"""What 'auto' stands for, and that rounding weights once changes nothing under autocast."""

import pytest
import torch
from torch import nn

from echostill.platform.computing.precision import (
    PRECISIONS,
    checked_precision,
    computing,
    exact_float32,
    gradient_scaler,
    lowered,
    own_precision,
)
from echostill.platform.errors import UsageError


@pytest.mark.parametrize(
    ("on_gpu", "bfloat16", "expected"),
    [
        (False, True, "float32"),
        (False, False, "float32"),
        (True, True, "bfloat16"),
        (True, False, "float16"),
    ],
)
def test_auto_is_float32_on_cpus_and_half_of_it_on_gpus(on_gpu, bfloat16, expected):
    assert own_precision(on_gpu, bfloat16) == expected


def test_a_precision_is_read_by_its_name():
    assert [checked_precision(name) for name in PRECISIONS] == list(PRECISIONS)
    with pytest.raises(UsageError, match=r"unknown precision 'bf16'.* Known: auto, float32"):
        checked_precision("bf16")


def test_float32_is_float32_wherever_models_compute():
    torch.backends.cudnn.allow_tf32 = True
    with computing("float32", "cpu"):
        assert not torch.is_autocast_enabled("cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
    with computing("bfloat16", "cpu"):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert torch.is_autocast_enabled("cpu")
    assert not gradient_scaler("bfloat16", "cpu").is_enabled()
    assert gradient_scaler("float16", "cpu").is_enabled()


def test_weights_rounded_once_give_what_autocast_gives():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), nn.LayerNorm(16), nn.Linear(16, 5))
    pixels = torch.rand(4, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = layers(pixels)
        found = lowered(layers, torch.bfloat16)(pixels)
    assert torch.equal(found, expected)
    assert layers[0].weight.dtype == layers[3].bias.dtype == torch.bfloat16
    assert layers[2].weight.dtype == torch.float32, "norms stay exact"


def test_float32_leaves_weights_alone_and_is_no_tensor_float():
    layer = nn.Linear(2, 2)
    assert lowered(layer, torch.float32) is layer
    assert layer.weight.dtype == torch.float32
    exact_float32()
    assert torch.get_float32_matmul_precision() == "highest"
    assert torch.backends.cudnn.allow_tf32 is False
