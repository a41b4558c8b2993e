import numpy as np
import pytest

from echostill.eval.metrics import dice
from echostill.eval.probes import patch_shares
from echostill.eval.probing.masks import (
    PENALTIES,
    THRESHOLDS,
    constant_predictor,
    cut,
    dice_by_threshold,
    segment,
    thumbnail_predictor,
    token_predictor,
    upsample,
)
from echostill.eval.probing.ridge import fit_ridge
from echostill.eval.splits import Folds

FOLDS = Folds(np.arange(20) % 5, (0, 1, 2, 3, 4))


def boxes(classes=1, thin=False):
    random = np.random.default_rng(1)
    masks = np.zeros((20, 16, 16), dtype=np.uint8)
    for index in range(20):
        top, left = random.integers(0, 3, 2) * 4
        for value in range(1, classes + 1):
            height = 1 if thin else 8
            masks[index, top : top + height, left + 4 * (value - 1) : left + 4 * value] = value
    shares = patch_shares(masks, classes + 1, 4).numpy()
    tokens = np.concatenate([shares * 3, random.normal(0, 0.1, (20, 16, 5))], axis=2)
    return tokens.astype(np.float32), masks, shares


def test_sums_by_fold_give_what_the_rows_themselves_give():
    tokens, _, shares = boxes(2)
    rows, seen = FOLDS.rows(3), FOLDS.outside(1, 3)
    flat = tokens[seen].reshape(-1, tokens.shape[2])
    plain = fit_ridge(flat, shares[seen].reshape(-1, 3), np.ones(len(flat)), PENALTIES)
    found = token_predictor(tokens, shares, FOLDS)((3, 1), rows)
    expected = plain.scores(tokens[rows].reshape(-1, tokens.shape[2]))
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2])
def test_dice_of_every_threshold_is_that_of_its_masks(classes):
    _, masks, shares = boxes(classes)
    found = dice_by_threshold(shares[None], masks)
    for column, threshold in enumerate(THRESHOLDS):
        predicted = cut(upsample(shares, 16), threshold)
        values = [
            dice(own == k, wanted == k)
            for own, wanted in zip(predicted, masks, strict=True)
            for k in range(1, classes + 1)
        ]
        assert found[0, column] == pytest.approx(np.mean(values))


@pytest.mark.parametrize("classes", [1, 2])
def test_tokens_find_their_boxes(classes):
    tokens, masks, shares = boxes(classes)
    found, _ = segment(token_predictor(tokens, shares, FOLDS), masks, FOLDS)
    assert np.mean([dice(f > 0, m > 0) for f, m in zip(found, masks, strict=True)]) > 0.8


def test_thin_structures_get_a_low_threshold():
    tokens, masks, shares = boxes(thin=True)
    found, thresholds = segment(token_predictor(tokens, shares, FOLDS), masks, FOLDS)
    assert (thresholds < 0.5).all()
    assert found.any((1, 2)).all()


def test_a_constant_mask_and_thumbnails_know_the_training_side_only():
    _, masks, shares = boxes()
    small = thumbnail_predictor(shares[..., 1], shares, FOLDS)
    assert segment(small, masks, FOLDS)[0].shape == masks.shape
    changed = masks.copy()
    changed[FOLDS.rows(2)] = 1
    same = [segment(constant_predictor(m, 2, FOLDS), m, FOLDS)[0] for m in (masks, changed)]
    np.testing.assert_array_equal(same[0][FOLDS.rows(2)], same[1][FOLDS.rows(2)])
    for fold in range(5):  # each image of a fold gets the same mask
        own = same[0][FOLDS.rows(fold)]
        assert (own == own[0]).all()
