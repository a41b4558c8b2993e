"""What is measured of predictions: metrics, and a row per image to make them from again."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from echostill.eval.metrics import binary_auc, classification_metrics, dice, hausdorff95
from echostill.eval.unius.protocols.data import BenchData

BINS = 15  # of the calibration error
CLEAN = "clean"

# A row per tested image. For classification ``values`` are the classes' probabilities; for
# segmentation each list has a number per structure.
PREDICTIONS = pa.schema(
    [
        ("method", pa.string()),
        ("condition", pa.string()),
        ("share", pa.float64()),
        ("id", pa.string()),
        ("group", pa.string()),
        ("target", pa.int32()),  # class; -1 where there is none
        ("values", pa.list_(pa.float64())),  # probabilities, or Dice at the input's size
        ("hd95", pa.list_(pa.float64())),  # pixels of the input
        ("dice_native", pa.list_(pa.float64())),
        ("hd95_native", pa.list_(pa.float64())),  # pixels of the image
        ("hd95_mm", pa.list_(pa.float64())),  # empty where the spacing is unknown
    ]
)


@dataclass(frozen=True)
class Measured:
    """One measurement of a model on a task.

    Attributes:
        method: Probe or head.
        condition: ``clean``, or how the test images were changed.
        share: Share of the training groups.
        metrics: Values by name; what is not defined is left out.
        images: Rows of :data:`PREDICTIONS` without method, condition and share.
    """

    method: str
    condition: str
    share: float
    metrics: dict[str, float]
    images: tuple[dict[str, Any], ...] = ()


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the mean gap of confidence and accuracy, weighted by bin size.

    Guo et al., "On calibration of modern neural networks", 2017: bins of equal width over the
    largest probability, each closed on the right.

    Args:
        labels: (N,) int64.
        probabilities: (N, C) that sum to 1.
        bins: Number of bins.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, confidence - right, bins)
    return float(np.abs(gaps).sum() / len(labels))


def measure_classification(
    data: BenchData,
    rows: np.ndarray,
    probabilities: np.ndarray,
    *,
    method: str,
    condition: str = CLEAN,
    share: float = 1.0,
) -> Measured:
    """Measure class probabilities (M, C) of some rows (M,)."""
    assert data.dataset.labels is not None
    labels, names = data.dataset.labels[rows], data.dataset.class_names
    metrics = classification_metrics(labels, probabilities)
    metrics["calibration_error"] = calibration_error(labels, probabilities)
    chosen = probabilities.argmax(1)
    for number, name in enumerate(names):
        own, called = labels == number, chosen == number
        metrics[f"auc {name}"] = binary_auc(own, probabilities[:, number])
        if own.any():
            metrics[f"recall {name}"] = float(called[own].mean())
            metrics[f"f1 {name}"] = float(2 * (own & called).sum() / (own.sum() + called.sum()))
    images = tuple(
        {
            "id": data.ids[row],
            "group": str(data.dataset.groups[row]),
            "target": int(label),
            "values": [float(value) for value in values],
        }
        for row, label, values in zip(rows, labels, probabilities, strict=True)
    )
    return Measured(method, condition, share, _defined(metrics), images)


def measure_segmentation(
    data: BenchData,
    rows: np.ndarray,
    predictions: np.ndarray,
    *,
    method: str,
    condition: str = CLEAN,
    share: float = 1.0,
    native: bool = True,
) -> Measured:
    """Measure predicted masks (M, S, S) of some rows (M,).

    Dice and HD95 at the input's size, as published, and where asked for at each image's own size:
    the predicted mask is enlarged by nearest neighbour [I]. A class absent from both masks counts
    as perfect at either size.
    """
    assert data.dataset.masks is not None
    names = data.dataset.class_names
    images = []
    for row, predicted in zip(rows, predictions, strict=True):
        values, distances = _overlap(predicted, data.dataset.masks[row], len(names))
        image: dict[str, Any] = {
            "id": data.ids[row],
            "group": str(data.dataset.groups[row]),
            "target": -1,
            "values": values,
            "hd95": distances,
        }
        if native:
            target = data.native_mask(int(row))
            large = Image.fromarray(predicted).resize(target.shape[::-1], Image.Resampling.NEAREST)
            own, own_distances = _overlap(np.asarray(large), target, len(names))
            side = data.pixel_mm[row]
            image |= {"dice_native": own, "hd95_native": own_distances}
            if not math.isnan(side):
                image["hd95_mm"] = [value * float(side) for value in own_distances]
        images.append(image)
    metrics: dict[str, float] = {}
    for column, key in (
        ("values", "dice"),
        ("hd95", "hd95"),
        ("dice_native", "dice_native"),
        ("hd95_native", "hd95_native"),
        ("hd95_mm", "hd95_mm"),
    ):
        table = np.array([image[column] for image in images if column in image])
        if len(table):
            metrics[key] = float(table.mean())
            if len(names) > 1:
                means = zip(names, table.mean(0), strict=True)
                metrics |= {f"{key} {name}": float(value) for name, value in means}
    return Measured(method, condition, share, metrics, tuple(images))


def predictions_table(measured: Sequence[Measured]) -> pa.Table:
    """Return the tested images of all measurements as one table."""
    rows = [
        {"method": one.method, "condition": one.condition, "share": one.share, **image}
        for one in measured
        for image in one.images
    ]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def _overlap(
    predicted: np.ndarray, target: np.ndarray, count: int
) -> tuple[list[float], list[float]]:
    pairs = [(predicted == k, target == k) for k in range(1, count + 1)]
    return [dice(*pair) for pair in pairs], [hausdorff95(*pair) for pair in pairs]


def _defined(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not math.isnan(value)}
