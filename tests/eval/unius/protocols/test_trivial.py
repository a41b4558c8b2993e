"""Trivial candidates are those of the evaluation, on the benchmark's own sides."""

import numpy as np
import pytest

from echostill.eval.probes import knn_probe, linear_probe
from echostill.eval.probing.candidates import thumbnails
from echostill.eval.splits import Split
from echostill.eval.unius.protocols.data import find_tasks, load_data
from echostill.eval.unius.protocols.settings import FrozenSettings, ProtocolSettings
from echostill.eval.unius.protocols.trivial import run_trivial

SETTINGS = ProtocolSettings(
    shares=(0.5, 1.0), corruptions=("depth",), frozen=FrozenSettings(few_shot=(1,), draws=2)
)


@pytest.fixture
def data(prepared_set):
    def load(name, kind):
        (task,) = find_tasks(prepared_set(name)[1].table.storage.root, kinds=(kind,))
        return load_data(task, 32)

    return load


def found(measured, method, share=1.0):
    (one,) = [m for m in measured if (m.method, m.condition, m.share) == (method, "clean", share)]
    return one


def test_a_thumbnail_is_probed_like_a_model(data):
    busi = data("busi", "classification")
    measured = run_trivial("thumbnail", busi, SETTINGS, seed=1)
    small = thumbnails(busi.dataset.pixels)
    split = Split(busi.training, busi.sides["test"])
    for method, expected in (
        ("linear probe", linear_probe(small, busi.dataset, split, seed=1)),
        ("k-NN", knn_probe(small, busi.dataset, split)),
    ):
        values = [image["values"] for image in found(measured, method).images]
        assert np.allclose(values, expected.predictions)
    assert any(m.method == "few-shot 1" for m in measured)
    assert {m.condition for m in measured} == {"clean", "depth"}


def test_a_constant_answer_is_at_chance(data):
    busi = data("busi", "classification")
    one = found(run_trivial("constant", busi, SETTINGS, seed=1), "linear probe")
    classes = len(busi.dataset.class_names)
    assert one.metrics["balanced_accuracy"] == pytest.approx(1 / classes)
    assert len({tuple(image["values"]) for image in one.images}) == 1
    shares = np.bincount(busi.dataset.labels[busi.training], minlength=classes)
    assert one.images[0]["values"] == pytest.approx(shares / shares.sum())


def test_a_constant_mask_is_the_best_cut_of_the_mean_mask(data):
    ddti = data("ddti", "segmentation")
    one = found(run_trivial("constant", ddti, SETTINGS, seed=1), "linear probe")
    test = ddti.sides["test"]
    mean = (ddti.dataset.masks[ddti.training] == 1).mean(0)
    wanted = ddti.dataset.masks[test] == 1

    def dice(mask):
        both = (mask & wanted).sum((1, 2))
        return (2 * both / np.maximum(mask.sum() + wanted.sum((1, 2)), 1)).mean()

    reached = [dice(mean >= threshold) for threshold in (0.5, 0.4, 0.3, 0.2, 0.1)]
    assert min(abs(one.metrics["dice"] - each) for each in reached) < 1e-9


def test_a_thumbnail_finds_masks_no_worse_than_nothing(data):
    ddti = data("ddti", "segmentation")
    measured = run_trivial("thumbnail", ddti, SETTINGS, seed=1)
    assert {m.method for m in measured} == {"linear probe"}
    assert 0 <= found(measured, "linear probe").metrics["dice"] <= 1
    assert len(found(measured, "linear probe").images) == len(ddti.sides["test"])
    again = run_trivial("thumbnail", ddti, SETTINGS, seed=1)
    assert [m.metrics for m in again] == [m.metrics for m in measured]
