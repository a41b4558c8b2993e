"""The frozen protocol gives what the evaluation's probes give on the same images and split."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from echostill.eval.probes import (
    knn_probe,
    linear_probe,
    linear_probe_segmentation,
    pooled_features,
    token_features,
)
from echostill.eval.splits import Split
from echostill.eval.unius.protocols.data import find_tasks, load_data, nested_share
from echostill.eval.unius.protocols.frozen import grid_features, resampled, run_frozen
from echostill.eval.unius.protocols.robustness import corrupt, corrupt_masks
from echostill.eval.unius.protocols.settings import FrozenSettings, ProtocolSettings
from echostill.platform.models import create_encoder

SETTINGS = ProtocolSettings(
    shares=(0.5, 1.0), corruptions=("depth",), frozen=FrozenSettings(few_shot=(1, 900), draws=2)
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return create_encoder("tinyusfm-micro", image_size=32)


@pytest.fixture
def data(prepared_set):
    def load(name, kind):
        (task,) = find_tasks(prepared_set(name)[1].table.storage.root, kinds=(kind,))
        return load_data(task, 32)

    return load


def found(measured, method, condition="clean", share=1.0):
    (one,) = [m for m in measured if (m.method, m.condition, m.share) == (method, condition, share)]
    return one


def test_classification_is_the_evaluations(data, encoder):
    busi = data("busi", "classification")
    measured = run_frozen(encoder, busi, SETTINGS, seed=1)
    features = pooled_features(encoder, busi.dataset.pixels)
    split = Split(busi.training, busi.sides["test"])
    for method, probe in {
        "k-NN": knn_probe(features, busi.dataset, split, neighbours=10),
        "linear probe": linear_probe(features, busi.dataset, split, seed=1),
    }.items():
        own = found(measured, method)
        for name in ("balanced_accuracy", "macro_f1", "auc", "accuracy"):
            assert own.metrics[name] == pytest.approx(probe.metrics[name], nan_ok=True)
        values = np.array([row["values"] for row in own.images])
        assert np.allclose(values, probe.predictions, atol=1e-7)
    half = Split(nested_share(busi, busi.training, 0.5, 1), split.test)
    near = knn_probe(features, busi.dataset, half, neighbours=10)
    values = [row["values"] for row in found(measured, "k-NN", share=0.5).images]
    assert np.allclose(values, near.predictions)


def test_few_shots_are_left_out_where_a_class_has_too_few_groups(data, encoder):
    measured = run_frozen(encoder, data("busi", "classification"), SETTINGS, seed=1)
    methods = {one.method for one in measured}
    assert "few-shot 1" in methods
    assert "few-shot 900" not in methods


def test_changed_images_are_tested_with_the_plain_training(data, encoder):
    luminous = data("luminous", "segmentation")
    measured = run_frozen(encoder, luminous, SETTINGS, seed=1)
    dataset, test = luminous.dataset, luminous.sides["test"]
    tokens = token_features(encoder, dataset.pixels)
    plain = linear_probe_segmentation(tokens, dataset, Split(luminous.training, test), seed=1)
    assert found(measured, "linear probe").metrics["dice"] == plain.metrics["dice"]
    pixels, masks = dataset.pixels.copy(), dataset.masks.copy()
    pixels[test] = corrupt("depth", pixels[test], [luminous.ids[row] for row in test])
    masks[test] = corrupt_masks("depth", masks[test])
    deep = replace(dataset, pixels=pixels, masks=masks)
    changed = linear_probe_segmentation(
        token_features(encoder, pixels), deep, Split(luminous.training, test), seed=1
    )
    assert found(measured, "linear probe", "depth").metrics["dice"] == pytest.approx(
        changed.metrics["dice"]
    )


def test_folds_test_every_image(data, encoder):
    settings = ProtocolSettings(frozen=FrozenSettings(split="folds"))
    gist = data("gist514", "segmentation")
    (one,) = run_frozen(encoder, gist, settings, seed=0)
    assert sorted(row["id"] for row in one.images) == sorted(gist.ids)


def test_stages_are_brought_onto_one_grid():
    torch.manual_seed(0)
    model = create_encoder("timm:mobilenetv3_small_050", image_size=64)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64)).astype(np.uint8)
    channels = sum(model.layer(layer).dim for layer in model.third_layers())
    assert grid_features(model, pixels).shape == (2, 16, channels)
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    means = resampled(tokens, (4, 4), 2)[0, :, 0]
    assert means.tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resampled(tokens, (4, 4), 8).shape == (1, 64, 1)


def test_a_plain_vit_gives_the_evaluations_tokens(encoder):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.uint8)
    assert np.array_equal(grid_features(encoder, pixels), token_features(encoder, pixels))
