"""Metrics, each with its definition, since the definitions in use differ.

Classification: accuracy, balanced accuracy, macro F1, one-vs-rest AUC. Segmentation: Dice, IoU and
HD95 per image and class, averaged over the images, then over the foreground classes; a class absent
from both masks counts as perfect, as in the published downstream protocol.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage, stats


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Count rows by true class (row) and predicted class (column): (classes, classes) int64."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of correct predictions."""
    return float(np.mean(labels == predictions))


def balanced_accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean recall over the classes that occur among the labels."""
    return float(np.mean([np.mean(predictions[labels == c] == c) for c in np.unique(labels)]))


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean F1 = 2TP / (2TP + FP + FN) over the classes that occur among labels or predictions."""
    scores = []
    for c in np.union1d(labels, predictions):
        hits = np.sum((labels == c) & (predictions == c))
        scores.append(2 * hits / (np.sum(labels == c) + np.sum(predictions == c)))
    return float(np.mean(scores))


def binary_auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative), ties counting one half.

    Args:
        positive: (N,) bool; both values must occur, else the result is nan.
        scores: (N,) float.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = stats.rankdata(scores)  # mean ranks for ties
    above = ranks[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def area_under_curve(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """AUC: of class 1 for two classes, else the unweighted mean of one-vs-rest AUCs.

    Args:
        labels: (N,) int64.
        probabilities: (N, C) scores, higher for more likely classes. Classes without a positive or
            a negative row are left out of the mean.
    """
    if probabilities.shape[1] == 2:
        return binary_auc(labels == 1, probabilities[:, 1])
    areas = [binary_auc(labels == c, probabilities[:, c]) for c in range(probabilities.shape[1])]
    known = [area for area in areas if not np.isnan(area)]
    return float(np.mean(known)) if known else float("nan")


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """All classification metrics of probabilities (N, C) against labels (N,)."""
    predictions = probabilities.argmax(1)
    return {
        "balanced_accuracy": balanced_accuracy(labels, predictions),
        "macro_f1": macro_f1(labels, predictions),
        "auc": area_under_curve(labels, probabilities),
        "accuracy": accuracy(labels, predictions),
    }


def dice(predicted: np.ndarray, target: np.ndarray) -> float:
    """Dice overlap 2 |A and B| / (|A| + |B|) of two boolean masks; 1 if both are empty."""
    total = int(predicted.sum()) + int(target.sum())
    return 1.0 if total == 0 else 2 * int((predicted & target).sum()) / total


def intersection_over_union(predicted: np.ndarray, target: np.ndarray) -> float:
    """Intersection over union |A and B| / |A or B| of two boolean masks; 1 if both are empty."""
    union = int((predicted | target).sum())
    return 1.0 if union == 0 else int((predicted & target).sum()) / union


def surface(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask (H, W) with a 4-neighbour outside it; the image's edge counts as outside."""
    edge: np.ndarray = mask & ~ndimage.binary_erosion(mask)
    return edge


def hausdorff95(predicted: np.ndarray, target: np.ndarray) -> float:
    """95th percentile of the surface distances in both directions together, in pixels.

    Each surface pixel of one mask gives its Euclidean distance to the other's surface; the
    percentile (linear interpolation) is taken over all of them, as MedPy does. 0 if both masks are
    empty; the longer image side if one is, as in the published downstream protocol.
    """
    if not predicted.any() or not target.any():
        return 0.0 if predicted.any() == target.any() else float(max(target.shape))
    first, second = surface(predicted), surface(target)
    distances = np.concatenate(
        [
            ndimage.distance_transform_edt(~second)[first],
            ndimage.distance_transform_edt(~first)[second],
        ]
    )
    return float(np.percentile(distances, 95))


def segmentation_metrics(
    masks: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> dict[str, float]:
    """Mean Dice, IoU and HD95 over images and foreground classes, and each class's Dice and HD95.

    Args:
        masks: (N, S, S) uint8, 0 background, k the class ``class_names[k - 1]``.
        predictions: (N, S, S) uint8.
        class_names: Foreground classes.
    """
    table = np.empty((3, len(masks), len(class_names)))
    for row, (target, predicted) in enumerate(zip(masks, predictions, strict=True)):
        for column in range(len(class_names)):
            own, other = predicted == column + 1, target == column + 1
            table[0, row, column] = dice(own, other)
            table[1, row, column] = intersection_over_union(own, other)
            table[2, row, column] = hausdorff95(own, other)
    means = table.mean(axis=1)
    result = {
        "dice": float(means[0].mean()),
        "hd95": float(means[2].mean()),
        "iou": float(means[1].mean()),
    }
    if len(class_names) > 1:
        for column, name in enumerate(class_names):
            result[f"dice {name}"] = float(means[0, column])
            result[f"hd95 {name}"] = float(means[2, column])
    return result
