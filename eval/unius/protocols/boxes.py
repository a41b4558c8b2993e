"""Boxes: from masks, their overlap, and the mean average precision of detections."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

SMALLEST = 4  # pixels of a connected part that counts as a lesion [I]
THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))  # of COCO


class Boxes(NamedTuple):
    """Boxes of one image, of annotations or of detections.

    Attributes:
        classes: (n,) int64, from 0.
        corners: (n, 4) float64: left, top, right, bottom in pixels; right and bottom are outside.
        scores: (n,) float64; 1 for annotations.
    """

    classes: np.ndarray
    corners: np.ndarray
    scores: np.ndarray


def boxes_of(mask: np.ndarray, count: int) -> Boxes:
    """Return a box around each connected part (also over corners) of each class in a mask.

    Args:
        mask: (H, W) uint8, 0 background, k the class k - 1.
        count: Number of classes.
    """
    classes, corners = [], []
    for number in range(count):
        parts, _ = ndimage.label(mask == number + 1, structure=np.ones((3, 3)))
        for place, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            if (parts[rows, columns] == place).sum() >= SMALLEST:
                classes.append(number)
                corners.append([columns.start, rows.start, columns.stop, rows.stop])
    shaped = np.array(corners, dtype=np.float64).reshape(-1, 4)
    return Boxes(np.array(classes, dtype=np.int64), shaped, np.ones(len(classes)))


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return intersection over union (n, m) of boxes (n, 4) and (m, 4)."""
    corner = np.maximum(first[:, None, :2], second[None, :, :2])
    other = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inside = np.clip(other - corner, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - inside
    shares: np.ndarray = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return shares


def suppressed(boxes: Boxes, threshold: float = 0.5, most: int = 50) -> Boxes:
    """Keep the best of boxes of one class that overlap by more than a threshold, best first."""
    order = np.argsort(-boxes.scores, kind="stable")
    table = overlaps(boxes.corners, boxes.corners)
    kept: list[int] = []
    for row in order:
        same = [k for k in kept if boxes.classes[k] == boxes.classes[row]]
        if not same or table[row, same].max() <= threshold:
            kept.append(int(row))
        if len(kept) == most:
            break
    return Boxes(*(part[kept] for part in boxes))


def mean_average_precision(
    wanted: list[Boxes], found: list[Boxes], count: int, thresholds: tuple[float, ...] = THRESHOLDS
) -> float:
    """Mean over thresholds and classes of the average precision; nan without any annotation.

    Detections of all images are taken by score, at equal scores in their order. Each takes the
    annotation of its class and image that it overlaps most and that none has taken; it is right
    if they overlap by at least the threshold. Average precision is the area under precision over
    recall, the precision made non-increasing (Everingham et al., 2010, from VOC 2010 on).

    Args:
        wanted: Annotations of each image.
        found: Detections of each image.
        count: Number of classes; one without annotations is left out.
        thresholds: Overlaps.
    """
    values = [
        _average_precision(wanted, found, number, threshold)
        for number in range(count)
        if any((boxes.classes == number).any() for boxes in wanted)
        for threshold in thresholds
    ]
    return float(np.mean(values)) if values else float("nan")


def _average_precision(
    wanted: list[Boxes], found: list[Boxes], number: int, threshold: float
) -> float:
    detections: list[tuple[float, bool]] = []
    total = 0
    for own, other in zip(wanted, found, strict=True):
        annotated = own.corners[own.classes == number]
        total += len(annotated)
        mine = other.classes == number
        order = np.argsort(-other.scores[mine], kind="stable")
        scores, corners = other.scores[mine][order], other.corners[mine][order]
        free = np.ones(len(annotated), dtype=bool)
        for score, row in zip(scores, overlaps(corners, annotated), strict=True):
            best = int(np.where(free, row, -1.0).argmax()) if free.any() else -1
            right = best >= 0 and bool(row[best] >= threshold)
            if right:
                free[best] = False
            detections.append((float(score), right))
    order = np.argsort([-score for score, _ in detections], kind="stable")
    hits = np.cumsum([detections[place][1] for place in order])
    if not len(hits):
        return 0.0
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    recall = np.concatenate([[0.0], hits / total])
    return float((np.diff(recall) * precision).sum())
