"""Segmentation from frozen features: shares of the classes in each patch, then one threshold.

Each model predicts on a grid what share of every patch belongs to each class. The shares are
upsampled to the image, and a pixel is foreground where those of the foreground classes together
reach a threshold. One half would not do: a structure thinner than half a patch never reaches it.
Threshold and penalty are therefore chosen by the Dice of the inner folds, for every model in the
same way: probes, thumbnail, constant mask, and the fine-tuned head.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch.nn import functional

from echostill.eval.probing.ridge import fit_ridge
from echostill.eval.splits import Folds

THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.1)
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)

# From the folds that must not be seen and some rows to their shares (P, n, side * side, classes).
Predictor = Callable[[tuple[int, ...], np.ndarray], np.ndarray]


def segment(predict: Predictor, masks: np.ndarray, folds: Folds) -> tuple[np.ndarray, np.ndarray]:
    """Predict each tested mask by a model that was fitted without its fold.

    Args:
        predict: The model.
        masks: (N, S, S) uint8 class indices.
        folds: The folds.

    Returns:
        Masks (N, S, S) uint8, 0 in rows that are not tested, and the threshold of each tested fold.
    """
    found = np.zeros_like(masks)
    thresholds = []
    for tested in folds.tested:
        reached, images = [], 0
        for fold in folds.inner(tested):
            rows = folds.rows(fold)
            if len(folds.outside(tested, fold)):
                shares = predict((tested, fold), rows)
                reached.append(dice_by_threshold(shares, masks[rows]) * len(rows))
                images += len(rows)
        penalty, threshold = 0, THRESHOLDS[0]
        if images:
            total = np.sum(reached, axis=0)
            best = np.unravel_index(int(np.argmax(total)), total.shape)
            penalty, threshold = int(best[0]), THRESHOLDS[int(best[1])]
        rows = folds.rows(tested)
        shares = predict((tested,), rows)[penalty]
        found[rows] = cut(upsample(shares, masks.shape[1]), threshold)
        thresholds.append(threshold)
    return found, np.array(thresholds)


def dice_by_threshold(shares: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the mean Dice over images and foreground classes, (P, thresholds).

    Args:
        shares: (P, n, side * side, classes).
        masks: (n, S, S).
    """
    return np.stack([_dice_of_each(upsample(own, masks.shape[1]), masks) for own in shares])


def best_threshold(shares: np.ndarray, masks: np.ndarray) -> tuple[float, float]:
    """Return the best mean Dice of shares (n, classes, S, S), and its threshold."""
    reached = _dice_of_each(shares, masks)
    return float(reached.max()), THRESHOLDS[int(reached.argmax())]


def _dice_of_each(shares: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Mean Dice over images and foreground classes with each threshold."""
    values = range(1, shares.shape[1])
    wanted = [masks == value for value in values]
    found = np.empty(len(THRESHOLDS))
    for column, threshold in enumerate(THRESHOLDS):
        predicted = cut(shares, threshold)
        found[column] = np.mean([mean_dice(predicted == k, wanted[k - 1]) for k in values])
    return found


def mean_dice(predicted: np.ndarray, wanted: np.ndarray) -> float:
    """Return the mean over images of the Dice of masks (n, S, S) bool; 1 where both are empty."""
    both = (predicted & wanted).sum((1, 2))
    total = predicted.sum((1, 2)) + wanted.sum((1, 2))
    return float(np.where(total == 0, 1.0, 2 * both / np.maximum(total, 1)).mean())


def upsample(shares: np.ndarray, size: int) -> np.ndarray:
    """Return shares (n, classes, size, size) float32 of shares (n, side * side, classes)."""
    side = math.isqrt(shares.shape[1])
    grid = torch.from_numpy(np.ascontiguousarray(shares, dtype=np.float32)).transpose(1, 2)
    grid = grid.reshape(len(shares), -1, side, side)
    if side != size:
        grid = functional.interpolate(grid, size=(size, size), mode="bilinear", align_corners=False)
    large: np.ndarray = grid.numpy()
    return large


def cut(shares: np.ndarray, threshold: float) -> np.ndarray:
    """Return the largest foreground class where the foreground reaches the threshold, or 0.

    Args:
        shares: (n, classes, S, S).
        threshold: Smallest share.
    """
    inside = 1 - shares[:, 0] >= threshold
    if shares.shape[1] == 2:
        return inside.astype(np.uint8)
    return np.where(inside, shares[:, 1:].argmax(1) + 1, 0).astype(np.uint8)


def token_predictor(tokens: np.ndarray, shares: np.ndarray, folds: Folds) -> Predictor:
    """Ridge regression from each patch's tokens to its shares.

    Sums of products are kept for each fold, and those of the folds that are trained on are added
    up: the tokens are read once, whatever is left out.

    Args:
        tokens: (N, side * side, D).
        shares: (N, side * side, classes).
        folds: The folds.
    """
    centre = tokens.reshape(-1, tokens.shape[2]).mean(0, dtype=np.float64)
    products = {int(f): _products(tokens[folds.rows(f)], shares[folds.rows(f)], centre)
                for f in np.unique(folds.fold)}  # fmt: skip
    fitted: dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]] = {}

    def predict(hidden: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        key = tuple(sorted(hidden))
        if key not in fitted:
            fitted[key] = _solve([p for f, p in products.items() if f not in key], PENALTIES)
        weight, bias = fitted[key]
        flat = tokens[rows].reshape(-1, tokens.shape[2]) - centre
        found: np.ndarray = np.matmul(flat, weight) + bias[:, None]
        return found.reshape(len(weight), len(rows), tokens.shape[1], -1)

    return predict


def thumbnail_predictor(thumbnails: np.ndarray, shares: np.ndarray, folds: Folds) -> Predictor:
    """Ridge regression from an image's thumbnail (N, D) to the shares of all patches."""
    flat = shares.reshape(len(shares), -1)

    def predict(hidden: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        seen = folds.outside(*hidden)
        fitted = fit_ridge(thumbnails[seen], flat[seen], np.ones(len(seen)), PENALTIES)
        return fitted.scores(thumbnails[rows]).reshape(len(PENALTIES), len(rows), *shares.shape[1:])

    return predict


def constant_predictor(masks: np.ndarray, classes: int, folds: Folds) -> Predictor:
    """The same mask for every image: each pixel's share of the classes on the training side."""

    def predict(hidden: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        seen = masks[folds.outside(*hidden)]
        shares = np.stack([(seen == value).mean(0) for value in range(classes)], axis=-1)
        flat = shares.reshape(1, 1, -1, classes)
        return np.broadcast_to(flat, (1, len(rows), *flat.shape[2:]))

    return predict


def _products(tokens: np.ndarray, shares: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums of one fold: rows, tokens, shares, and their products."""
    x = tokens.reshape(-1, tokens.shape[2]).astype(np.float64) - centre
    t = shares.reshape(-1, shares.shape[2])
    return np.array(float(len(x))), x.sum(0), t.sum(0), x.T @ x, x.T @ t


def _solve(
    parts: Sequence[tuple[np.ndarray, ...]], penalties: Iterable[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression on standardised features from sums of products, as ``fit_ridge``.

    Returns:
        (P, D, O) and (P, O): for features that have only been centred.
    """
    count, x, t, xx, xt = (np.sum([part[k] for part in parts], axis=0) for k in range(5))
    mean, level = x / count, t / count
    covariance = xx / count - np.outer(mean, mean)
    scale = np.sqrt(np.maximum(np.diag(covariance), 0))
    scale = np.where(scale > 1e-8, scale, 1.0)
    values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
    right = vectors.T @ ((xt / count - np.outer(mean, level)) / scale[:, None])
    strengths = np.array(list(penalties))[:, None, None]
    weight = np.matmul(vectors, right / (np.maximum(values, 0)[None, :, None] + strengths))
    weight = weight / scale[None, :, None]
    return weight, level - np.matmul(mean, weight)
