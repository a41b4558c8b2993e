import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from echostill.eval import probes
from echostill.eval.datasets import LabelledDataset
from echostill.eval.probing.candidates import frozen_features
from echostill.eval.splits import Split
from echostill.eval.unius.protocols.frozen import grid_features
from echostill.platform.errors import UsageError
from echostill.platform.models import EncoderOutput, create_encoder


class ToyEncoder(nn.Module):
    """Each patch token is the patch's own pixels."""

    name, image_size, patch_size, dim, depth, prefix_tokens = "toy", 16, 4, 48, 3, 1

    def third_layers(self):
        return (1, 2, 3)

    def forward(self, pixels, layers=()):
        tokens = nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2)
        pooled = tokens.mean(1)
        tokens = torch.cat([pooled[:, None], tokens], dim=1)
        return EncoderOutput(tokens, pooled, tuple(tokens * layer for layer in layers))


def cosines(found, exact):
    found, exact = (values.reshape(-1, values.shape[-1]) for values in (found, exact))
    return (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)


def test_features_in_bfloat16_are_near_those_in_float32():
    torch.manual_seed(0)
    encoder = create_encoder("usfm-micro", image_size=32)
    pixels = np.random.default_rng(0).integers(0, 255, (5, 3, 32, 32), np.uint8)

    def features(**options):
        return [
            probes.pooled_features(encoder, pixels, batch_size=2, **options),
            probes.token_features(encoder, pixels, **options),
            grid_features(encoder, pixels, **options),
            *frozen_features(encoder, pixels, **options),
        ]

    default, exact = features(), features(precision="float32")
    for found, whole, plain in zip(features(precision="bfloat16"), exact, default, strict=True):
        assert found.dtype == np.float32
        assert np.array_equal(whole, plain)
        assert not np.array_equal(found, whole)
        assert cosines(found, whole).min() >= 0.999


def classification(count=60, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = generator.normal(size=(count, 8)) + 4 * np.eye(8)[labels]
    data = LabelledDataset(
        "toy",
        "classification",
        tuple(map(str, range(count))),
        np.array([f"g{k}" for k in range(count)]),
        np.zeros((count, 3, 16, 16), dtype=np.uint8),
        labels,
        None,
        ("a", "b", "c")[:classes],
        None,
        (),
    )
    return features.astype(np.float32), data, Split(np.arange(40), np.arange(40, count))


def segmentation(classes=1, count=16):
    generator = np.random.default_rng(1)
    masks = np.zeros((count, 16, 16), dtype=np.uint8)
    pixels = generator.integers(0, 60, (count, 3, 16, 16)).astype(np.uint8)
    for index in range(count):
        top, left = generator.integers(0, 3, 2) * 4
        for value in range(1, classes + 1):
            box = (slice(top, top + 8), slice(left + 4 * (value - 1), left + 4 * value))
            masks[index][box] = value
            pixels[index][:, box[0], box[1]] += np.uint8(90 * value)
    data = LabelledDataset(
        "boxes",
        "segmentation",
        tuple(map(str, range(count))),
        np.array([f"g{k}" for k in range(count)]),
        pixels,
        None,
        masks,
        tuple(f"class {k}" for k in range(1, classes + 1)),
        None,
        (),
    )
    return data, Split(np.arange(10), np.arange(10, count))


def test_knn_agrees_with_a_plain_loop():
    features, data, split = classification()
    result = probes.knn_probe(features, data, split, neighbours=5, temperature=0.2)
    features = features - features[split.train].astype(float).mean(0)
    for row, index in enumerate(split.test):
        sims = []
        for other in split.train:
            a, b = features[index].astype(float), features[other].astype(float)
            sims.append((a @ b / np.linalg.norm(a) / np.linalg.norm(b), data.labels[other]))
        votes = np.zeros(3)
        for similarity, label in sorted(sims, reverse=True)[:5]:
            votes[label] += np.exp(similarity / 0.2)
        np.testing.assert_allclose(result.predictions[row], votes / votes.sum(), rtol=1e-9)
    assert result.metrics["balanced_accuracy"] > 0.9


def test_knn_with_fewer_images_than_neighbours_and_a_zero_feature():
    features, data, _ = classification()
    features[0] = 0
    result = probes.knn_probe(features, data, Split(np.arange(4), np.arange(4, 60)))
    assert np.isfinite(result.predictions).all()


def test_logistic_regression_is_at_the_minimum():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 6, dtype=torch.float64, generator=generator) * 3 + 1
    targets = torch.softmax(torch.randn(50, 3, dtype=torch.float64, generator=generator), dim=1)
    weights = torch.rand(50, dtype=torch.float64, generator=generator) + 0.5
    model = probes.fit_logistic(features, targets, weights, 0.5)
    # gradients written out by hand
    x = ((features - model.mean) / model.scale).numpy()
    residual = (model.probabilities(features) - targets).numpy() * weights.numpy()[:, None] / 50
    np.testing.assert_allclose(residual.sum(0), 0, atol=1e-5)
    np.testing.assert_allclose(residual.T @ x + model.weight.numpy() / 25, 0, atol=1e-5)


def test_constant_features_do_no_harm():
    features, data, split = classification()
    features[:, 3] = 5
    result = probes.linear_probe(features, data, split, 0)
    assert np.isfinite(result.predictions).all()


def test_balanced_weights():
    weights = probes.balanced_weights(np.array([0, 0, 0, 2])).numpy()
    assert weights.mean() == pytest.approx(1)
    assert weights[:3].sum() == pytest.approx(weights[3])


def test_linear_probe_is_repeatable_and_picks_its_penalty():
    features, data, split = classification()
    first = probes.linear_probe(features, data, split, 0)
    second = probes.linear_probe(features, data, split, 0)
    assert np.array_equal(first.predictions, second.predictions)
    assert first.metrics["inverse_penalty"] in probes.INVERSE_PENALTIES
    assert first.metrics["balanced_accuracy"] > 0.9
    np.testing.assert_allclose(first.predictions.sum(1), 1)


def test_linear_probe_never_looks_at_the_test_side():
    features, data, split = classification()
    changed = features.copy()
    changed[split.test[1:]] = 1e3
    data.labels[split.test[1:]] = 0
    kept = probes.linear_probe(features, data, split, 0).predictions[0]
    np.testing.assert_array_equal(probes.linear_probe(changed, data, split, 0).predictions[0], kept)


def test_linear_probe_where_a_class_has_one_training_group():
    features, data, split = classification()
    data.groups[split.train] = [f"clip{label}" for label in data.labels[split.train]]
    result = probes.linear_probe(features, data, split, 0)
    assert result.metrics["inverse_penalty"] == 0.1


def test_features_have_the_grid_order_and_no_prefix():
    data, _ = segmentation()
    tokens = probes.token_features(ToyEncoder(), data.pixels, batch_size=5)
    assert tokens.shape == (16, 16, 144)
    patch = data.pixels[7][:, 4:8, 8:12].reshape(-1) / 255  # row 1, column 2 of the grid
    np.testing.assert_allclose(tokens[7, 6, :48], patch, rtol=1e-6)
    np.testing.assert_allclose(tokens[7, 6, 96:], patch * 3, rtol=1e-6)
    pooled = probes.pooled_features(ToyEncoder(), data.pixels, batch_size=5)
    np.testing.assert_allclose(pooled, tokens[:, :, :48].mean(1), rtol=1e-5)


def test_patch_shares():
    masks = np.zeros((1, 8, 8), dtype=np.uint8)
    masks[0, :2, :4] = 1
    masks[0, 4:, 4:] = 2
    shares = probes.patch_shares(masks, 3, 2)[0].numpy()
    assert shares.tolist() == [[0.5, 0.5, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("classes", [1, 2])
def test_segmentation_probe_finds_bright_boxes(classes):
    data, split = segmentation(classes)
    tokens = probes.token_features(ToyEncoder(), data.pixels)
    result = probes.linear_probe_segmentation(tokens, data, split, 0, inverse_penalty=10)
    assert result.predictions.shape == (6, 16, 16)
    assert result.metrics["dice"] > 0.85
    again = probes.linear_probe_segmentation(tokens, data, split, 0, inverse_penalty=10)
    assert np.array_equal(result.predictions, again.predictions)


def test_segmentation_probe_draws_tokens_where_there_are_many(monkeypatch):
    monkeypatch.setattr(probes, "MAX_TRAINING_TOKENS", 100)
    data, split = segmentation()
    tokens = probes.token_features(ToyEncoder(), data.pixels)
    result = probes.linear_probe_segmentation(tokens, data, split, 0, inverse_penalty=10)
    assert result.metrics["dice"] > 0.7


def test_segmentation_probe_finds_structures_thinner_than_half_a_patch():
    generator = np.random.default_rng(0)
    masks = np.zeros((16, 16, 16), dtype=np.uint8)
    pixels = generator.integers(0, 40, (16, 3, 16, 16)).astype(np.uint8)
    for index in range(16):
        row = 4 * generator.integers(0, 4) + 1
        masks[index, row] = 1
        pixels[index, :, row] += 150
    data, split = segmentation()
    data = dataclasses.replace(data, masks=masks, pixels=pixels)
    tokens = probes.token_features(ToyEncoder(), pixels)
    result = probes.linear_probe_segmentation(tokens, data, split, 0, inverse_penalty=10)
    assert result.metrics["threshold"] < 0.5
    assert result.metrics["dice"] > 0.3


def test_wrong_size_or_kind_is_refused():
    features, data, split = classification()
    boxes, _ = segmentation()
    with pytest.raises(UsageError, match="expects images of 16 px, but the task has 8 px"):
        probes.pooled_features(ToyEncoder(), np.zeros((1, 3, 8, 8), dtype=np.uint8))
    with pytest.raises(UsageError, match="'boxes' is a segmentation task"):
        probes.knn_probe(features, boxes, split)
    with pytest.raises(UsageError, match="'toy' is a classification task"):
        probes.linear_probe_segmentation(features, data, split, 0)
