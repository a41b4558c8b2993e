"""Metrics of predictions, and that the rows on disk give the same numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echostill.eval.metrics import classification_metrics, dice, hausdorff95
from echostill.eval.unius.protocols.data import find_tasks, load_data
from echostill.eval.unius.protocols.measures import (
    calibration_error,
    measure_classification,
    measure_segmentation,
    predictions_table,
)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(1, 9), min_size=3, max_size=3))
    ).filter(bool),
    st.integers(1, 20),
)
def test_calibration_error_is_what_its_definition_says(rows, bins):
    labels = np.array([label for label, _ in rows])
    probabilities = np.array([np.array(parts) / sum(parts) for _, parts in rows])
    total = 0.0
    for place in range(bins):
        low, high = place / bins, (place + 1) / bins
        inside = [
            (p.max(), p.argmax() == label)
            for p, label in zip(probabilities, labels, strict=True)
            if low < p.max() <= high
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            total += len(inside) / len(rows) * abs(confidence - right)
    # On a border of two bins either is right within rounding.
    borders = np.isclose(probabilities.max(1) * bins % 1, [[0.0], [1.0]], atol=1e-9).any()
    if not borders:
        assert calibration_error(labels, probabilities, bins) == pytest.approx(total, abs=1e-12)


@pytest.fixture
def data(prepared_set):
    def load(name, kind):
        (task,) = find_tasks(prepared_set(name)[1].table.storage.root, kinds=(kind,))
        return load_data(task, 16)

    return load


def test_classification_is_remade_from_its_rows(data):
    busi = data("busi", "classification")
    rows = np.arange(len(busi.dataset))
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), len(rows))
    found = measure_classification(busi, rows, probabilities, method="m")
    table = predictions_table([found]).to_pylist()
    again = classification_metrics(
        np.array([row["target"] for row in table]), np.array([row["values"] for row in table])
    )
    assert again.items() <= found.metrics.items()
    assert [row["id"] for row in table] == list(busi.ids)
    for number, name in enumerate(busi.dataset.class_names):
        own = busi.dataset.labels == number
        hits = (probabilities.argmax(1) == number)[own]
        assert found.metrics[f"recall {name}"] == pytest.approx(hits.mean())


def test_masks_are_measured_at_both_sizes_and_in_millimetres(data):
    camus = data("camus", "segmentation")
    camus.pixel_mm[:] = np.nan
    camus.pixel_mm[0] = 0.5
    rows = np.array([0, 1])
    predicted = np.roll(camus.dataset.masks[rows], 2, axis=2)
    found = measure_segmentation(camus, rows, predicted, method="m")
    first = found.images[0]
    target = camus.native_mask(0)
    height, width = target.shape
    large = predicted[0][np.arange(height) * 16 // height][:, np.arange(width) * 16 // width]
    for k in range(1, 4):
        own = camus.dataset.masks[0] == k
        assert first["values"][k - 1] == dice(predicted[0] == k, own)
        assert first["dice_native"][k - 1] == pytest.approx(dice(large == k, target == k), abs=0.05)
    assert first["hd95_mm"] == [0.5 * value for value in first["hd95_native"]]
    assert first["hd95"][0] == hausdorff95(predicted[0] == 1, camus.dataset.masks[0] == 1)
    assert "hd95_mm" not in found.images[1]
    assert found.metrics["hd95_mm"] == pytest.approx(np.mean(first["hd95_mm"]))
    values = [row["values"] for row in predictions_table([found]).to_pylist()]
    assert found.metrics["dice"] == pytest.approx(np.mean(values))


def test_a_perfect_mask_is_perfect_at_the_size_of_the_input(data):
    luminous = data("luminous", "segmentation")
    rows = np.arange(3)
    found = measure_segmentation(luminous, rows, luminous.dataset.masks[rows], method="m")
    assert (found.metrics["dice"], found.metrics["hd95"]) == (1.0, 0.0)
    assert 0.5 < found.metrics["dice_native"] <= 1.0
