"""Networks of the published protocol: shapes, sizes, and that they learn."""

import pytest
import torch

from echostill.eval.heads import SegmentationTask
from echostill.eval.unius.protocols.networks import (
    LinearClassifier,
    StageSegmentation,
    UNet,
    network_for,
)
from echostill.platform.models import create_encoder


def made(encoder, classes=2, segments=True):
    return network_for(encoder, classes, segments=segments, width=16, dice_weight=0.0)


def test_the_head_fits_the_encoder():
    plain = create_encoder("tinyusfm-micro", image_size=32)
    stages = create_encoder("timm:mobilenetv3_small_050", image_size=32)
    assert type(made(plain)) is SegmentationTask
    assert type(made(stages)) is StageSegmentation
    assert type(made(stages, segments=False)) is LinearClassifier
    assert type(made(None)) is UNet
    assert 0.3e6 < sum(parameter.numel() for parameter in UNet(1).parameters()) < 1e6


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("name", ["timm:mobilenetv3_small_050", None])
def test_it_predicts_masks_and_learns_one(name, classes):
    torch.manual_seed(0)
    encoder = create_encoder(name, image_size=32) if name else None
    network = made(encoder, classes)
    pixels = torch.zeros(2, 3, 32, 32)
    pixels[:, :, 8:20, 8:24] = 1.0
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
    masks[:, 8:20, 8:24] = classes
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = network.training_step(pixels, masks)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    found = network.eval().predict(pixels)
    assert found.shape == (2, classes + 1, 32, 32)
    assert torch.allclose(found.sum(1), torch.ones(2, 32, 32), atol=1e-5)
