import dataclasses

import numpy as np
import pytest

from echostill.eval.datasets import LabelledDataset, TaskSettings
from echostill.eval.metrics import balanced_accuracy
from echostill.eval.probes import knn_probe
from echostill.eval.probing.candidates import thumbnails
from echostill.eval.splits import split_dataset
from echostill.jobs.sweeps.sweep import SweepConfig
from echostill.jobs.sweeps.trivial import trivial_probes

LABELS = np.arange(40) % 2


def dataset():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 90, (40, 3, 16, 16)).astype(np.uint8)
    pixels[LABELS == 1, :, :8, :8] += 40
    names = tuple(f"{k:02d}.png" for k in range(40))
    groups = np.array([f"g{k // 4}{k % 2}" for k in range(40)])
    return LabelledDataset("toy", "classification", names, groups, pixels, LABELS, None,
                           ("a", "b"), None, ())  # fmt: skip


def config():
    task = TaskSettings(name="toy", kind="classification", manifest="toy.csv")
    return SweepConfig(name="s", base={}, grid={"training.steps": (5,)}, task=task,
                       probe_seeds=(0, 3))  # fmt: skip


def test_trivial_candidates_are_tested_on_the_sides_of_the_probes():
    data, settings = dataset(), config()
    found = trivial_probes(settings, data)
    assert found["constant"] == {"constant": [0.5, 0.5]}
    small = thumbnails(data.pixels)
    for seed, value in zip(settings.probe_seeds, found["thumbnail"]["k-NN"], strict=True):
        split = split_dataset(data, seed, settings.test_share)
        said = knn_probe(small, data, split, neighbours=settings.neighbours).predictions.argmax(1)
        assert value == pytest.approx(balanced_accuracy(LABELS[split.test], said))
    assert min(found["thumbnail"]["linear probe"]) > 0.8


def test_a_segmentation_has_one_mask_for_all_images():
    masks = np.zeros((40, 16, 16), dtype=np.uint8)
    masks[:, 4:12, 4:12] = 1
    masks[LABELS == 1, 4:12, 4:8] = 0
    data = dataclasses.replace(
        dataset(), kind="segmentation", labels=None, masks=masks, class_names=("lesion",)
    )
    found = trivial_probes(config(), data)
    whole, half = 1.0, 2 * 32 / (64 + 32)  # the larger mask, over each of both kinds
    assert found["constant"]["constant"] == pytest.approx([(whole + half) / 2] * 2, abs=0.05)
    assert set(found["thumbnail"]) == {"linear probe"}
