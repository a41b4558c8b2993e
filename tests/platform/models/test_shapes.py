import pytest
import torch
from torch import nn

from echostill.platform.errors import UsageError
from echostill.platform.models import Encoder, create_encoder, model_names
from echostill.platform.models.shapes import measure


@pytest.mark.parametrize("name", model_names())
def test_our_own_models_are_as_they_are_stated(name):
    with torch.device("meta"):
        encoder = create_encoder(name)
    stated = encoder._shapes
    assert measure(encoder.backbone, name, encoder.image_size) == stated


def test_measuring_changes_nothing():
    encoder = create_encoder("tinyusfm-micro").train()
    before = {key: value.clone() for key, value in encoder.backbone.state_dict().items()}
    generator = torch.get_rng_state()
    measure(encoder.backbone, "x", 128)
    assert encoder.backbone.training
    assert torch.equal(torch.get_rng_state(), generator)
    after = encoder.backbone.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("name", "pooling", "words"),
    [
        ("timm:pit_ti_224", "mean", "set pooling to 'class-token' or 'timm'"),
        ("timm:test_resnet", "class-token", "no class token: set pooling to 'mean' or 'timm'"),
        ("timm:vit_medium_patch16_reg4_gap_256", "class-token", "has no class token"),
        ("timm:crossvit_9_240", "mean", "ends in no grid of patch tokens"),
        ("timm:crossvit_9_240", "class-token", "set pooling to 'timm'"),
    ],
)
def test_a_pooling_that_a_model_lacks_is_refused(name, pooling, words):
    with torch.device("meta"), pytest.raises(UsageError, match=words):
        create_encoder(name, pooling=pooling)


@pytest.mark.parametrize("name", ["pit_ti_224", "crossvit_9_240"])
def test_a_model_without_a_final_grid_pools_by_itself(name):
    torch.manual_seed(0)
    encoder = create_encoder(f"timm:{name}", pooling="timm").eval()
    assert encoder.grid is None
    side = encoder.image_size
    with torch.no_grad():
        output = encoder(torch.rand(2, 3, side, side), (1, encoder.depth))
    assert output.tokens.shape == (2, 0, encoder.dim)
    assert output.pooled.shape == (2, encoder.feature_dim)
    for layer, tokens in zip((1, encoder.depth), output.intermediate, strict=True):
        rows, columns = encoder.layer(layer).grid
        assert tokens.shape == (2, rows * columns, encoder.layer(layer).dim)
    with pytest.raises(UsageError, match="ends in no grid"):
        encoder.patch_grid()


@pytest.mark.parametrize("name", ["cait_xxs24_224", "volo_d1_224"])
def test_patches_alone_where_the_blocks_give_no_class_token(name):
    """The class token of these families joins late, or is not given with a block's output."""
    torch.manual_seed(0)
    encoder = create_encoder(f"timm:{name}", image_size=64).eval()
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        output = encoder(pixels, (1,))
        features = encoder.backbone.forward_features(encoder.normalise(pixels))
    assert encoder.prefix_tokens == 0
    assert features.shape[1] == 1 + 16
    torch.testing.assert_close(output.tokens, features[:, 1:])
    torch.testing.assert_close(output.pooled, features[:, 1:].mean(dim=1))


class Broken(nn.Module):
    num_features, feature_info = 4, [{"reduction": 16, "num_chs": 4}]

    def forward_features(self, pixels):
        return pixels

    def forward_head(self, features, pre_logits=False):
        return features

    def forward_intermediates(self, pixels, **options):
        raise IndexError("list index out of range")


def test_what_goes_wrong_inside_a_model_is_said_in_words():
    with pytest.raises(UsageError, match=r"'odd' cannot be an encoder for images of 64 pixels"):
        Encoder(Broken(), name="odd", image_size=64)
    for name, size in (("test_vit", 65), ("gcvit_xxtiny", 100), ("test_vit", 8)):
        with (
            torch.device("meta"),
            pytest.raises(UsageError, match=f"timm:{name}' cannot be .*{size}"),
        ):
            create_encoder(f"timm:{name}", image_size=size)
