import dataclasses

import numpy as np
import torch

from echostill.eval.datasets import LabelledDataset
from echostill.eval.metrics import balanced_accuracy
from echostill.eval.probing.candidates import Protocol, grid_means, thumbnails, trivial_rows
from echostill.eval.splits import dataset_folds


def dataset(kind="classification"):
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    pixels = random.integers(0, 60, (40, 3, 16, 16)).astype(np.uint8)
    pixels[labels == 1, :, :8, :8] += 120  # seen even by a thumbnail
    masks = np.zeros((40, 16, 16), dtype=np.uint8)
    masks[:, 4:12, 4:12] = 1
    masks[labels == 1, :8, :8] = 1
    names = tuple(f"{k:02d}.png" for k in range(40))
    classified = kind == "classification"
    return LabelledDataset(
        "toy", kind, names, np.array([f"g{k // 2 % 20}{k % 2}" for k in range(40)]), pixels,
        labels if classified else None, None if classified else masks,
        ("a", "b") if classified else ("lesion",), None, (),
    )  # fmt: skip


def test_thumbnails_and_grid_are_means_of_cells():
    pixels = np.random.default_rng(0).integers(0, 255, (2, 3, 32, 32)).astype(np.uint8)
    expected = pixels[1].mean(0)[4:8, 8:12].mean() / 255
    np.testing.assert_allclose(thumbnails(pixels)[1, 8 + 2], expected)
    tokens = torch.rand(2, 4 * 6, 5)
    found = grid_means(tokens, (4, 6)).reshape(2, 5, 2, 2)
    wanted = tokens.reshape(2, 4, 6, 5)[1, :2, 3:].mean((0, 1))
    torch.testing.assert_close(found[1, :, 0, 1], wanted)


def test_a_constant_is_at_chance_and_a_thumbnail_sees_brightness():
    data = dataset()
    protocol = Protocol(data, dataset_folds(data, 5, 0), shots=(5,), draws=2)
    rows = trivial_rows(data, protocol).to_pylist()
    found = {}
    for row in rows:
        found.setdefault((row["candidate"], row["method"], row["draw"]), []).append(row)
    for (candidate, method, _), own in found.items():
        truth = np.array([row["label"] for row in own])
        reached = balanced_accuracy(truth, np.array([row["predicted"] for row in own]))
        assert (reached == 0.5) if candidate == "constant" else reached > 0.9, (candidate, method)
        if method != "few-shot":
            assert sorted(row["image"] for row in own) == sorted(data.files)
    assert {key[1] for key in found} == {"constant", "k-NN", "linear probe", "few-shot"}
    assert protocol.too_many == []


def test_trivial_masks():
    data = dataset("segmentation")
    protocol = Protocol(data, dataset_folds(data, 5, 0), shots=(5,), draws=2)
    rows = trivial_rows(data, protocol).to_pylist()
    mean = {
        name: np.mean([row["dice"][0] for row in rows if row["candidate"] == name])
        for name in ("constant", "thumbnail")
    }
    assert 0.5 < mean["constant"] < 0.95 < mean["thumbnail"]


def test_an_official_split_is_tested_on_its_test_side():
    data = dataclasses.replace(
        dataset(), official_split=np.array(["train"] * 30 + ["test"] * 10),
        groups=np.array([f"g{k}" for k in range(40)]),
    )  # fmt: skip
    protocol = Protocol(data, dataset_folds(data, 5, 0))
    assert protocol.tested.tolist() == list(range(30, 40))
    assert len(set(protocol.folds.fold[:30])) == 5
    rows = trivial_rows(data, protocol)
    assert set(rows["image"].to_pylist()) == set(data.files[30:])
