import numpy as np
import pytest
import torch

from echostill.distill.objective.consistency import (
    Consistency,
    consistency_of,
    consistency_weight,
)
from echostill.distill.objective.outputs import ViewOutputs
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.models import create_encoder

CUTS = (slice(0, 2), slice(2, 5))


def test_centring_spreads_what_a_common_feature_hides():
    torch.manual_seed(0)
    common = 20 * torch.randn(64)
    spatial, frequency = common + torch.randn(2, 32, 64)
    assert consistency_of(spatial, frequency).std() < 0.01
    assert consistency_of(spatial, frequency, common).std() > 0.05


@pytest.mark.parametrize("centre", [None, "joint", "view"])
def test_consistency_over_batches_is_the_numpy_reference(centre):
    """Three batches, each in two parts, with running means of both views or of each."""
    with torch.device("meta"):
        teacher = create_encoder("usfm-micro", image_size=64)
    settings = ObjectiveSettings(centre=centre, momentum=0.8)
    measured = Consistency(teacher, settings, "separated", ())
    measured.mean.double()
    random = np.random.default_rng(0)
    offsets = 3 * random.standard_normal((2, 1, teacher.feature_dim))  # what a view always has
    seen = []
    for _ in range(3):
        views = offsets + random.standard_normal((2, 5, teacher.feature_dim))
        pieces = [torch.from_numpy(views[:, rows].reshape(-1, views.shape[-1])) for rows in CUTS]
        found = torch.cat(
            measured.of([ViewOutputs(piece, None, {}, {}) for piece in pieces]), dim=1
        )
        seen.append(views.mean(axis=1))
        share = 0.8 ** np.arange(len(seen) - 1, -1, -1)
        mean = np.tensordot(share / share.sum(), np.array(seen), axes=1)[:, None]
        if centre != "view":
            mean = mean.mean(axis=0, keepdims=True)
        first, second = views - mean
        norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
        expected = (first * second).sum(axis=-1) / norms
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-10, atol=1e-12)


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
