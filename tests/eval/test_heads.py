import numpy as np
import pytest
import torch

from echostill.eval import heads
from echostill.platform.errors import UsageError
from echostill.platform.models import create_encoder


def test_layers_are_the_published_ones():
    assert heads.segmentation_layers(12) == (4, 6, 8, 12)
    assert heads.segmentation_layers(6) == (2, 3, 4, 6)
    assert heads.segmentation_layers(1) == (1, 1, 1, 1)


@pytest.mark.parametrize("side", [4, 7])
def test_segmentation_head_gives_the_image_size(side):
    head = heads.SegmentationHead(12, 3, side * 16, channels=6, width=8)
    tokens = [torch.randn(2, side * side, 12) for _ in range(4)]
    assert head(tokens).shape == (2, 3, side * 16, side * 16)


def test_scales_are_four_two_one_and_a_half():
    head = heads.SegmentationHead(12, 1, 64, channels=6)
    sizes = [scale(torch.zeros(1, 6, 8, 8)).shape[-1] for scale in head.scale]
    assert sizes == [32, 16, 8, 4]


def test_published_width():
    head = heads.SegmentationHead(192, 1, 224)
    assert [part.out_channels for part in head.reduce] == [48] * 4
    assert head.classify.in_channels == 128


def test_tokens_keep_their_place():
    torch.manual_seed(0)
    head = heads.SegmentationHead(4, 1, 64, channels=6, width=8).eval()
    tokens = [torch.zeros(1, 16, 4) for _ in range(4)]
    plain = head(tokens)
    tokens[2][0, 3] = torch.tensor([4.0, -3.0, 2.0, 1.0])  # first row, last column
    change = (head(tokens) - plain).abs()[0, 0].detach().numpy()
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert row < 32
    assert column >= 32


def test_hierarchical_tokens_are_refused():
    head = heads.SegmentationHead(12, 1, 64)
    with pytest.raises(UsageError, match="plain ViT"):
        head([torch.zeros(1, 16, 12)] * 3 + [torch.zeros(1, 4, 24)])


@pytest.mark.parametrize("classes", [1, 3])
def test_segmentation_task(classes):
    encoder = create_encoder("tinyusfm-micro")
    task = heads.SegmentationTask(encoder, classes, width=8)
    pixels = torch.rand(2, 3, 128, 128)
    masks = torch.randint(0, classes + 1, (2, 128, 128)).to(torch.uint8)
    loss = task.training_step(pixels, masks)
    logits = task.logits(pixels)
    assert logits.shape[1] == (1 if classes == 1 else classes + 1)
    if classes == 1:
        shares = torch.sigmoid(logits[:, 0].double())
        chosen = torch.where(masks == 1, shares, 1 - shares)
    else:
        chosen = torch.softmax(logits.double(), 1).gather(1, masks.long()[:, None])
    assert loss.item() == pytest.approx(-chosen.log().mean().item(), rel=1e-4)
    predicted = task.predict(pixels)
    assert predicted.shape == (2, classes + 1, 128, 128)
    torch.testing.assert_close(predicted.sum(1), torch.ones(2, 128, 128))
    if classes == 1:
        torch.testing.assert_close(predicted[:, 1], torch.sigmoid(logits[:, 0]))
    else:
        assert torch.equal(predicted.argmax(1), logits.argmax(1))
    loss.backward()
    assert all(p.grad is not None for p in task.head.parameters())


def test_soft_dice_loss_of_hard_masks_is_one_minus_dice():
    wanted = torch.zeros(2, 2, 8, 8)
    wanted[:, 0, :4] = 1
    wanted[0, 1, 5:] = 1
    shares = wanted.clone()
    assert heads.soft_dice_loss(shares, wanted).item() == pytest.approx(0)
    shares[:, 0, :2] = 0
    first = 1 - (2 * 32 + 1) / (32 + 64 + 1)
    assert heads.soft_dice_loss(shares, wanted).item() == pytest.approx(first / 2)


def test_dice_weight_mixes_the_losses():
    encoder = create_encoder("tinyusfm-micro").eval()
    task = heads.SegmentationTask(encoder, 1, width=8).eval()
    pixels, masks = torch.rand(1, 3, 128, 128), torch.randint(0, 2, (1, 128, 128))
    losses = []
    for task.dice_weight in (0.0, 1.0, 0.25):
        losses.append(task.training_step(pixels, masks).item())
    assert losses[2] == pytest.approx(0.75 * losses[0] + 0.25 * losses[1], rel=1e-5)
    expected = heads.soft_dice_loss(torch.sigmoid(task.logits(pixels)), masks[:, None].float())
    assert losses[1] == pytest.approx(expected.item(), rel=1e-5)


def test_class_weights():
    encoder = create_encoder("tinyusfm-micro").eval()
    task = heads.ClassificationTask(encoder, 2, torch.tensor([0.5, 3.0])).eval()
    pixels = torch.rand(2, 3, 128, 128)
    rows = -task.predict(pixels)[[0, 1], [0, 1]].log()
    loss = task.training_step(pixels, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(((0.5 * rows[0] + 3 * rows[1]) / 2).item(), rel=1e-5)


def test_classification_task():
    encoder = create_encoder("tinyusfm-micro")
    task = heads.ClassificationTask(encoder, 3).eval()
    pixels = torch.rand(2, 3, 128, 128)
    probabilities = task.predict(pixels)
    assert torch.allclose(probabilities.sum(1), torch.ones(2))
    expected = -probabilities[[0, 1], [2, 0]].log().mean()
    loss = task.training_step(pixels, torch.tensor([2, 0]))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
