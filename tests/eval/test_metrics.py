import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echostill.eval import metrics


def brute_auc(positive, scores):
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, b in itertools.product(scores[positive], scores[~positive])
    ]
    return sum(pairs) / len(pairs)


def brute_surface(mask):
    height, width = mask.shape
    points = []
    for y, x in zip(*np.nonzero(mask), strict=True):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [0 <= v < height and 0 <= u < width and mask[v, u] for v, u in around]
        if not all(inside):
            points.append((y, x))
    return points


def brute_hd95(first, second):
    a, b = brute_surface(first), brute_surface(second)
    distances = [min(math.dist(p, q) for q in b) for p in a]
    distances += [min(math.dist(p, q) for q in a) for p in b]
    return np.percentile(distances, 95)


def test_known_confusion():
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 0, 1, 2, 1, 0, 2])
    matrix = metrics.confusion_matrix(labels, predictions, 3)
    assert matrix.tolist() == [[2, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert metrics.accuracy(labels, predictions) == pytest.approx(4 / 7)
    assert metrics.balanced_accuracy(labels, predictions) == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert metrics.macro_f1(labels, predictions) == pytest.approx((4 / 7 + 0.5 + 2 / 3) / 3)


def test_a_majority_guess_has_chance_balanced_accuracy():
    labels = np.array([0] * 95 + [1] * 5)
    assert metrics.balanced_accuracy(labels, np.zeros(100, dtype=int)) == 0.5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_auc_agrees_with_all_pairs(rows):
    positive = np.array([row[0] for row in rows])
    scores = np.array([row[1] for row in rows], dtype=float)
    area = metrics.binary_auc(positive, scores)
    if positive.all() or not positive.any():
        assert math.isnan(area)
    else:
        assert area == pytest.approx(brute_auc(positive, scores))


def test_auc_of_several_classes_is_the_mean_of_one_against_the_rest():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    scores = generator.random((40, 4))  # class 3 never occurs and is left out
    expected = np.mean([brute_auc(labels == c, scores[:, c]) for c in range(3)])
    assert metrics.area_under_curve(labels, scores) == pytest.approx(expected)
    two = scores[:, :2]
    assert metrics.area_under_curve(labels % 2, two) == pytest.approx(
        brute_auc(labels % 2 == 1, two[:, 1])
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.05, 0.9), st.floats(0.05, 0.9))
def test_overlap_and_distance_agree_with_brute_force(seed, dense, other):
    generator = np.random.default_rng(seed)
    first, second = generator.random((9, 9)) < dense, generator.random((9, 9)) < other
    both = int((first & second).sum())
    if first.any() or second.any():
        assert metrics.dice(first, second) == pytest.approx(
            2 * both / (int(first.sum()) + int(second.sum()))
        )
        assert metrics.intersection_over_union(first, second) == pytest.approx(
            both / int((first | second).sum())
        )
    if first.any() and second.any():
        assert metrics.hausdorff95(first, second) == pytest.approx(brute_hd95(first, second))
        assert metrics.hausdorff95(first, first) == 0


def test_empty_masks():
    empty, full = np.zeros((6, 6), dtype=bool), np.ones((6, 6), dtype=bool)
    assert metrics.dice(empty, empty) == 1
    assert metrics.intersection_over_union(empty, empty) == 1
    assert metrics.hausdorff95(empty, empty) == 0
    assert metrics.dice(empty, full) == 0
    assert metrics.hausdorff95(empty, full) == metrics.hausdorff95(full, empty) == 6


def test_a_shift_by_three_pixels():
    first, second = np.zeros((20, 20), dtype=bool), np.zeros((20, 20), dtype=bool)
    first[5:10, 5:10] = True
    second[5:10, 8:13] = True
    assert metrics.hausdorff95(first, second) == pytest.approx(3)


def test_segmentation_metrics_average_images_then_classes():
    target = np.zeros((2, 4, 4), dtype=np.uint8)
    target[0, :2] = 1
    target[1, 2:] = 2
    predicted = target.copy()
    predicted[0, 0] = 0
    result = metrics.segmentation_metrics(target, predicted, ("a", "b"))
    assert result["dice a"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["dice b"] == 1
    assert result["dice"] == pytest.approx((result["dice a"] + 1) / 2)
    assert result["hd95 b"] == 0
    single = metrics.segmentation_metrics(target[:1], predicted[:1], ("a",))
    assert set(single) == {"dice", "hd95", "iou"}
    assert single["iou"] == 0.5
