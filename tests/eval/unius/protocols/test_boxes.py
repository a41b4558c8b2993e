"""Boxes from masks, and the mean average precision against a brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.eval.unius.protocols.boxes import (
    Boxes,
    boxes_of,
    mean_average_precision,
    overlaps,
    suppressed,
)


def test_each_connected_part_has_a_box():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 3:9] = 1
    mask[10:15, 20:22] = 1
    mask[15:18, 22:25] = 1  # touches the one above at a corner
    mask[0, 0] = 1  # too small
    mask[8:12, 0:4] = 2
    found = boxes_of(mask, 2)
    assert found.classes.tolist() == [0, 0, 1]
    assert found.corners.tolist() == [[3, 2, 9, 6], [20, 10, 25, 18], [0, 8, 4, 12]]
    assert len(boxes_of(np.zeros((5, 5), np.uint8), 2).classes) == 0


def box(random, count):
    corner = random.integers(0, 6, (count, 2))
    size = random.integers(1, 5, (count, 2))
    corners = np.concatenate([corner, corner + size], axis=1).astype(float)
    return Boxes(random.integers(0, 2, count), corners, random.permutation(count) / 7 + 0.01)


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_overlap_is_a_count_of_pixels(seed):
    random = np.random.default_rng(seed)
    first, second = box(random, 3).corners, box(random, 2).corners
    for i, j in np.ndindex(3, 2):
        areas = [np.zeros((12, 12), bool), np.zeros((12, 12), bool)]
        for area, (x0, y0, x1, y1) in zip(areas, (first[i], second[j]), strict=True):
            area[int(y0) : int(y1), int(x0) : int(x1)] = True
        wanted = (areas[0] & areas[1]).sum() / (areas[0] | areas[1]).sum()
        assert overlaps(first, second)[i, j] == pytest.approx(wanted)


def brute_force(wanted, found, threshold):
    """One class: walk down the scores, match greedily, then integrate the precision."""
    flat = sorted(
        ((-score, image, place) for image, boxes in enumerate(found)
         for place, score in enumerate(boxes.scores)),
    )  # fmt: skip
    taken, points, hits = set(), [], 0
    total = sum(len(boxes.scores) for boxes in wanted)
    for number, (_, image, place) in enumerate(flat, 1):
        best, chosen = -1.0, None
        for other in range(len(wanted[image].scores)):
            if (image, other) in taken:
                continue
            pair = found[image].corners[[place]], wanted[image].corners[[other]]
            value = overlaps(*pair)[0, 0]
            if value > best:
                best, chosen = value, other
        if chosen is not None and best >= threshold:
            taken.add((image, chosen))
            hits += 1
        points.append((hits / total, hits / number))
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


@given(st.integers(0, 10**6))
@settings(max_examples=60)
def test_precision_is_a_brute_force(seed):
    random = np.random.default_rng(seed)
    wanted = [box(random, random.integers(0, 4)) for _ in range(4)]
    found = [box(random, random.integers(0, 6)) for _ in range(4)]
    scores = iter(random.permutation(100) / 100)  # no ties between images
    found = [b._replace(scores=np.array([next(scores) for _ in b.scores])) for b in found]
    values = []
    for number in (0, 1):
        own = [Boxes(*(part[b.classes == number] for part in b)) for b in wanted]
        other = [Boxes(*(part[b.classes == number] for part in b)) for b in found]
        if sum(len(b.scores) for b in own):
            values += [brute_force(own, other, threshold) for threshold in (0.3, 0.5)]
    measured = mean_average_precision(wanted, found, 2, (0.3, 0.5))
    assert measured == pytest.approx(np.mean(values)) if values else np.isnan(measured)


def test_perfect_and_no_detections():
    random = np.random.default_rng(0)
    wanted = [box(random, 2) for _ in range(3)]
    nothing = [box(random, 0) for _ in range(3)]
    assert mean_average_precision(wanted, wanted, 2) == pytest.approx(1.0)
    assert mean_average_precision(wanted, nothing, 2) == 0.0


def test_the_best_of_overlapping_boxes_stays():
    corners = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 10]], float)
    boxes = Boxes(np.array([0, 0, 0, 1]), corners, np.array([0.5, 0.9, 0.3, 0.2]))
    assert suppressed(boxes).scores.tolist() == [0.9, 0.3, 0.2]  # another class stays too
