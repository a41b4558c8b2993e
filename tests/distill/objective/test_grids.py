import numpy as np
import pytest
import torch
from torch.nn import functional

from echostill.distill.objective.core import DistillationObjective
from echostill.distill.objective.grids import on_grid, resample_tokens
from echostill.distill.objective.outputs import ViewOutputs
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.objective.terms.tokens import normalise_tokens
from echostill.distill.objective.views import resize_views
from echostill.platform.errors import UsageError
from echostill.platform.masking.masks import MaskSettings, draw_masks
from echostill.platform.masking.mim import DecoderSettings, MaskedImageModel
from echostill.platform.models import create_encoder

GRIDS = [((16, 16), (14, 14)), ((7, 7), (14, 14)), ((56, 56), (8, 8)), ((27, 27), (14, 14))]


def interpolated(tokens, grid, wanted):
    """The reference: torch's own interpolation of the tokens as a map."""
    spread = tokens.transpose(1, 2).unflatten(2, grid)
    resampled = functional.interpolate(spread, wanted, mode="bilinear", antialias=True)
    return resampled.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(("grid", "wanted"), [*GRIDS, ((3, 5), (4, 2)), ((1, 1), (3, 3))])
def test_tokens_are_resampled_as_torch_interpolates(grid, wanted):
    torch.manual_seed(0)
    tokens = torch.randn(2, grid[0] * grid[1], 5, dtype=torch.float64)
    found = resample_tokens(tokens, grid, wanted)
    torch.testing.assert_close(found, interpolated(tokens, grid, wanted), rtol=1e-12, atol=1e-12)
    assert resample_tokens(tokens.float(), grid, wanted).dtype == torch.float32


def test_resampling_by_hand():
    """From 2 to 4 positions: the outer ones are kept, the inner ones are a quarter on the way."""
    tokens = torch.tensor([[[0.0], [4.0], [8.0], [12.0]]])  # 2 x 2
    found = resample_tokens(tokens, (2, 2), (2, 4))[0, :, 0]
    assert found.tolist() == [0.0, 1.0, 3.0, 4.0, 8.0, 9.0, 11.0, 12.0]


def test_equal_grids_are_not_touched():
    encoder = create_encoder("tinyusfm-micro", image_size=64)
    tokens, block = torch.rand(1, 16, 64), torch.rand(1, 16, 64)
    given = ViewOutputs(torch.rand(1, 64), tokens, {2: block}, {})
    found = on_grid(given, encoder, (4, 4))
    assert found.tokens is tokens
    assert found.blocks[2] is block
    views = torch.rand(1, 3, 64, 64)
    assert resize_views(views, 64) is views


def objective_of(student, teacher, **settings):
    """An objective of two models by name and input size, in float64."""
    torch.manual_seed(0)
    own = MaskedImageModel(
        create_encoder(student[0], image_size=student[1]), DecoderSettings(dim=24)
    )
    other = create_encoder(teacher[0], image_size=teacher[1], pooling="timm")
    return DistillationObjective(
        own, other, ObjectiveSettings(**{"preset": "tinyusfm", **settings})
    ).double()


def batch_for(objective, size=2):
    encoder = objective.student.encoder
    side = encoder.image_size
    torch.manual_seed(1)
    masks = MaskSettings().scaled_to(side, encoder.patch_size)
    ids = [str(number) for number in range(size)]
    pixels = torch.rand(size, 3, side, side, dtype=torch.float64)
    return pixels, draw_masks(masks, 0, np.zeros(size, dtype=np.int64), ids)


def test_a_teacher_of_another_grid_is_followed_on_the_students():
    """Input of 160 pixels in 10 x 10 patches against 64 pixels in 4 x 4, computed by hand."""
    objective = objective_of(
        ("tinyusfm-micro", 64), ("timm:test_vit", 160), target="layer-norm", layers=(2, 6),
        teacher_layers=(3, 6),
    )  # fmt: skip
    pixels, masks = batch_for(objective)
    views = objective.views(pixels, masks)
    (signal,) = objective.observe([objective.ask_teacher(pixels, views)])
    teacher = objective.teacher
    shown = functional.interpolate(views, 160, mode="bilinear", antialias=True)
    with torch.no_grad():
        blocks = teacher(shown, (3, 6)).intermediate
    for found, tokens in zip(signal.targets["tokens"], blocks, strict=True):
        expected = normalise_tokens(interpolated(tokens[:, 1:], (10, 10), (4, 4)))
        torch.testing.assert_close(found, expected)
    output = objective(pixels, views, masks)
    output.loss.backward()
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize(
    ("student", "teacher", "settings"),
    [
        (("tinyusfm-micro", 64), ("timm:test_resnet", 96), {}),
        (("tinyusfm-micro", 64), ("timm:test_convnext", 64), {"consistency": "each"}),
        (("timm:test_convnext", 128), ("usfm-micro", 64), {}),
        (("timm:test_convnext", 128), ("timm:test_resnet", 160), {"consistency": "each"}),
        (("tinyusfm-micro", 64), ("timm:test_vit", 32), {"level": "token"}),
        (("tinyusfm-micro", 64), ("timm:test_resnet", 96), {"level": "token"}),
        (
            ("timm:test_convnext", 128),
            ("timm:test_resnet", 96),
            {"level": "token", "consistency": "each"},
        ),
    ],
)
def test_stages_of_any_width_and_grid_are_matched(student, teacher, settings):
    objective = objective_of(student, teacher, **settings)
    encoder, followed = objective.student.encoder, objective.teacher
    adapters = objective.terms["tokens"].modules["adapters"]
    assert [(each.in_features, each.out_features) for each in adapters] == [
        (encoder.layer(own).dim, followed.layer(other).dim)
        for own, other in zip(encoder.third_layers(), followed.third_layers(), strict=True)
    ]
    pixels, masks = batch_for(objective)
    output = objective(pixels, objective.views(pixels, masks), masks)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(each.weight.grad.abs().sum() > 0 for each in adapters)
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(UsageError, match=r"over 4 x 4 patches and that of 'usfm-micro' over 8 x 8"):
        objective_of(("tinyusfm-micro", 64), ("usfm-micro", 128), attention_weight=1.0)
    with pytest.raises(UsageError, match="'timm:pit_ti_224' ends in no grid"):
        objective_of(("tinyusfm-micro", 64), ("timm:pit_ti_224", None), level="token")
    objective_of(("tinyusfm-micro", 64), ("timm:pit_ti_224", None))  # its pooled feature suffices
    with pytest.raises(UsageError, match="no whole patches"):
        objective_of(("timm:test_resnet", 70), ("usfm-micro", 64))
