import pytest
import torch

from echostill.distill.objective.consistency import consistency_of, consistency_weight
from echostill.distill.objective.settings import ObjectiveSettings


def test_centring_spreads_what_a_common_feature_hides():
    torch.manual_seed(0)
    common = 20 * torch.randn(64)
    spatial, frequency = common + torch.randn(2, 32, 64)
    assert consistency_of(spatial, frequency).std() < 0.01
    assert consistency_of(spatial, frequency, common).std() > 0.05


def test_consistency_falls_as_the_views_part():
    feature, noise = torch.randn(2, 100, 16)
    values = [consistency_of(feature, feature + s * noise).mean() for s in (0, 0.3, 1, 3)]
    assert values == sorted(values, reverse=True)
    assert consistency_of(feature, -feature).mean() == pytest.approx(-1)
    zero = torch.zeros(1, 16)
    assert consistency_of(zero, zero) == 1
    assert consistency_of(zero, feature[:1]) == 0


def test_weights_of_equal_images_are_one():
    same = torch.full((5,), 0.3)
    for weighting in ("softmax", "batch-normalised"):
        weight = consistency_weight(same, ObjectiveSettings(weighting=weighting))
        torch.testing.assert_close(weight, torch.ones(5))
    many = torch.rand(7, 9)
    softmax = ObjectiveSettings(weighting="softmax", temperature=0.01)
    assert consistency_weight(many, softmax).mean() == pytest.approx(1, rel=1e-5)
