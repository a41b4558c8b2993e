"""Probes: the quality of a frozen encoder's features, without training the encoder.

k-nearest neighbours and a linear classifier on pooled features; for segmentation a linear
classifier on each patch token. Features are extracted once per (encoder, task) and used with any
split. Everything is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from echostill.eval.datasets import LabelledDataset
from echostill.eval.metrics import classification_metrics, dice, segmentation_metrics
from echostill.eval.splits import Split, group_split
from echostill.platform.computing.precision import Precision, computing
from echostill.platform.errors import UsageError
from echostill.platform.seeding import stream

if TYPE_CHECKING:
    from echostill.platform.models import Encoder

INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
SEGMENTATION_INVERSE_PENALTY = 0.1
FOREGROUND_THRESHOLDS = (0.5, 0.4, 0.3, 0.2, 0.1)
INNER_TEST_SHARE = 0.25
MAX_TRAINING_TOKENS = 20_000


class ProbeResult(NamedTuple):
    """Predictions on the test side and their metrics."""

    metrics: dict[str, float]
    predictions: np.ndarray  # classification: probabilities (M, C); segmentation: masks (M, S, S)


class LinearModel(NamedTuple):
    """A multinomial logistic regression on standardised features."""

    mean: Tensor  # (D,)
    scale: Tensor  # (D,)
    weight: Tensor  # (C, D)
    bias: Tensor  # (C,)

    def probabilities(self, features: Tensor) -> Tensor:
        """Class probabilities (N, C) float64 of features (N, D)."""
        standardised = (features.double() - self.mean) / self.scale
        return torch.softmax(standardised @ self.weight.T + self.bias, dim=1)


def require_size(encoder: Encoder, pixels: np.ndarray) -> None:
    """Check that the images have the encoder's size.

    Raises:
        UsageError: The sizes differ.
    """
    if pixels.shape[-1] != encoder.image_size:
        raise UsageError(
            f"model '{encoder.name}' expects images of {encoder.image_size} px, but the task has "
            f"{pixels.shape[-1]} px: load the task at the model's size."
        )


@torch.inference_mode()
def pooled_features(
    encoder: Encoder,
    pixels: np.ndarray,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> np.ndarray:
    """Extract the model's own pooled features: (N, D) float32 of pixels (N, 3, S, S) uint8."""
    require_size(encoder, pixels)
    encoder = encoder.to(device).eval()
    with computing(precision, device):
        parts = [
            encoder(batch).pooled.float().cpu().numpy()
            for batch in batches(pixels, batch_size, device)
        ]
    return np.concatenate(parts)


@torch.inference_mode()
def token_features(
    encoder: Encoder,
    pixels: np.ndarray,
    *,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> np.ndarray:
    """Extract patch tokens after each third of the depth, concatenated.

    Returns:
        (N, tokens, 3 D) float32, tokens row by row of the patch grid.
    """
    require_size(encoder, pixels)
    encoder = encoder.to(device).eval()
    layers = encoder.third_layers()
    parts = []
    for batch in batches(pixels, batch_size, device):
        with computing(precision, device):
            outputs = encoder(batch, layers).intermediate
        joined = torch.cat([tokens[:, encoder.prefix_tokens :] for tokens in outputs], dim=2)
        parts.append(joined.float().cpu().numpy())
    return np.concatenate(parts)


def knn_probe(
    features: np.ndarray,
    dataset: LabelledDataset,
    split: Split,
    *,
    neighbours: int = 10,
    temperature: float = 0.07,
) -> ProbeResult:
    """Vote of the nearest training images by cosine similarity, each with exp(similarity / T).

    Features are centred by the training side's mean first: uncentred ones of different images have
    cosines above 0.9, and what differs between images hardly counts.

    Weighting and temperature follow Wu et al., "Unsupervised feature learning via non-parametric
    instance discrimination", 2018. Neighbours at equal similarity are taken in row order.

    Args:
        features: (N, D) pooled features of the whole dataset.
        dataset: A classification dataset.
        split: Rows to vote and rows to test.
        neighbours: How many vote; all training images if there are fewer.
        temperature: T.
    """
    labels = _labels(dataset)
    unit = features.astype(np.float64)
    unit -= unit[split.train].mean(0)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    similarity = unit[split.test] @ unit[split.train].T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    near = np.take_along_axis(similarity, nearest, axis=1)
    votes = np.exp((near - near[:, :1]) / temperature)  # relative to the nearest: no overflow
    probabilities = np.zeros((len(split.test), len(dataset.class_names)))
    rows = np.arange(len(split.test))[:, None]
    np.add.at(probabilities, (rows, labels[split.train][nearest]), votes)
    probabilities /= probabilities.sum(1, keepdims=True)
    return ProbeResult(classification_metrics(labels[split.test], probabilities), probabilities)


def linear_probe(
    features: np.ndarray,
    dataset: LabelledDataset,
    split: Split,
    seed: int,
    *,
    inverse_penalties: Sequence[float] = INVERSE_PENALTIES,
) -> ProbeResult:
    """Class-balanced logistic regression on features standardised by the training side.

    The inverse penalty C comes from a split by group inside the training side (lowest
    class-balanced log loss; the smaller C if equal). If a class has too few groups for that, the
    middle of the list is used.

    Args:
        features: (N, D) pooled features of the whole dataset.
        dataset: A classification dataset.
        split: Rows to train and to test on.
        seed: Seed of the inner split.
        inverse_penalties: Values of C to try.
    """
    labels = _labels(dataset)
    classes = len(dataset.class_names)
    own, groups = labels[split.train], dataset.groups[split.train]
    train = torch.from_numpy(features[split.train].astype(np.float64))
    chosen = sorted(inverse_penalties)[len(inverse_penalties) // 2]
    inner: Split | None = None
    if len(inverse_penalties) > 1:
        try:
            inner = group_split(groups, own, seed, INNER_TEST_SHARE)
        except UsageError:
            inner = None
    if inner is not None:
        losses = {}
        for value in sorted(inverse_penalties):
            model = _fit_labels(train[inner.train], own[inner.train], classes, value)
            losses[value] = _balanced_log_loss(model, train[inner.test], own[inner.test])
        chosen = min(losses, key=losses.__getitem__)
    model = _fit_labels(train, own, classes, chosen)
    probabilities = model.probabilities(torch.from_numpy(features[split.test])).numpy()
    metrics = classification_metrics(labels[split.test], probabilities)
    metrics["inverse_penalty"] = chosen
    return ProbeResult(metrics, probabilities)


def linear_probe_segmentation(
    tokens: np.ndarray,
    dataset: LabelledDataset,
    split: Split,
    seed: int,
    *,
    inverse_penalty: float = SEGMENTATION_INVERSE_PENALTY,
) -> ProbeResult:
    """Logistic regression from each patch token to the share of each class in its patch.

    The predicted shares are upsampled bilinearly to the image. A pixel is foreground where their
    sum reaches a threshold, the one of a short list with the best Dice on the training side: a
    structure thinner than half a patch never reaches one half.

    Args:
        tokens: (N, tokens, D) from :func:`token_features`.
        dataset: A segmentation dataset.
        split: Rows to train and to test on.
        seed: Seed of the sample of training tokens if there are more than fit in memory.
        inverse_penalty: C of the regression.
    """
    masks = _masks(dataset)
    classes = len(dataset.class_names) + 1
    side = math.isqrt(tokens.shape[1])
    shares = patch_shares(masks[split.train], classes, side).reshape(-1, classes)
    count = len(split.train) * tokens.shape[1]
    picked = np.arange(count)
    if count > MAX_TRAINING_TOKENS:
        order = stream(seed, "segmentation tokens").permutation(count)
        picked = np.sort(order[:MAX_TRAINING_TOKENS])
    image, token = np.divmod(picked, tokens.shape[1])
    train = torch.from_numpy(tokens[split.train[image], token].astype(np.float64))
    model = fit_logistic(train, shares[torch.from_numpy(picked)], None, inverse_penalty)
    chosen = min(
        FOREGROUND_THRESHOLDS,
        key=lambda value: -_mean_dice(model, tokens, masks, split.train, classes, value),
    )
    predictions = np.stack(
        [_predict_mask(_pixel_shares(model, tokens[row], masks), chosen) for row in split.test]
    )
    metrics = segmentation_metrics(masks[split.test], predictions, dataset.class_names)
    metrics["threshold"] = chosen
    return ProbeResult(metrics, predictions)


def _pixel_shares(model: LinearModel, tokens: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Shares (classes, S, S) of one image's tokens (tokens, D), upsampled bilinearly."""
    side = math.isqrt(len(tokens))
    grid = model.probabilities(torch.from_numpy(tokens)).T.reshape(1, -1, side, side)
    size = masks.shape[1:]
    large = functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    return large[0].numpy()


def _predict_mask(shares: np.ndarray, threshold: float) -> np.ndarray:
    """Return the largest foreground class if the foreground's share reaches the threshold, or 0."""
    inside = 1 - shares[0] >= threshold
    return np.where(inside, shares[1:].argmax(0) + 1, 0).astype(np.uint8)


def _mean_dice(
    model: LinearModel,
    tokens: np.ndarray,
    masks: np.ndarray,
    rows: np.ndarray,
    classes: int,
    threshold: float,
) -> float:
    values = []
    for row in rows:
        predicted = _predict_mask(_pixel_shares(model, tokens[row], masks), threshold)
        values += [dice(predicted == k, masks[row] == k) for k in range(1, classes)]
    return float(np.mean(values))


def patch_shares(masks: np.ndarray, classes: int, side: int) -> Tensor:
    """Share of each class in each patch.

    Args:
        masks: (N, S, S) uint8 class indices.
        classes: Classes with the background.
        side: Patches per image side.

    Returns:
        (N, side * side, classes) float64 that sum to 1 over the classes.
    """
    index = torch.from_numpy(masks)
    parts = [
        functional.adaptive_avg_pool2d((index == value).double()[:, None], side).flatten(1)
        for value in range(classes)
    ]
    return torch.stack(parts, dim=2)


def fit_logistic(
    features: Tensor, targets: Tensor, weights: Tensor | None, inverse_penalty: float
) -> LinearModel:
    """Fit a multinomial logistic regression with L-BFGS in float64, from zero.

    Minimises  mean_i w_i CE(t_i, softmax(W x_i + b)) + |W|^2 / (2 C n)  on standardised x; the bias
    is not penalised. The problem is convex, so the result depends only on the data.

    Args:
        features: (n, D) float64.
        targets: (n, C) float64 shares that sum to 1 (one-hot for labels).
        weights: (n,) float64 with mean 1, or None.
        inverse_penalty: C.
    """
    mean, scale = features.mean(0), features.std(0, unbiased=False)
    scale = torch.where(scale > 1e-8, scale, torch.ones_like(scale))
    standardised = (features - mean) / scale
    count = len(features)
    weight = torch.zeros(targets.shape[1], features.shape[1], dtype=torch.float64)
    bias = torch.zeros(targets.shape[1], dtype=torch.float64)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimiser = torch.optim.LBFGS(
        parameters,
        max_iter=100,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        rows = -(targets * torch.log_softmax(standardised @ weight.T + bias, dim=1)).sum(1)
        loss = (rows if weights is None else rows * weights).mean()
        loss = loss + weight.square().sum() / (2 * inverse_penalty * count)
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch gives it no types
    return LinearModel(mean, scale, weight.detach(), bias.detach())


def _fit_labels(
    features: Tensor, labels: np.ndarray, classes: int, inverse_penalty: float
) -> LinearModel:
    targets = functional.one_hot(torch.from_numpy(labels), classes).double()
    return fit_logistic(features, targets, balanced_weights(labels), inverse_penalty)


def balanced_weights(labels: np.ndarray) -> Tensor:
    """Weights (n,) float64 that give every class present the same total; their mean is 1."""
    values, position, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return torch.from_numpy(len(labels) / (len(values) * counts[position].astype(np.float64)))


def _balanced_log_loss(model: LinearModel, features: Tensor, labels: np.ndarray) -> float:
    chosen = model.probabilities(features).gather(1, torch.from_numpy(labels)[:, None])[:, 0]
    return float((balanced_weights(labels) * -chosen.clamp_min(1e-300).log()).mean())


def batches(
    pixels: np.ndarray, batch_size: int = 32, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Yield pixels (N, 3, S, S) uint8 in order, as float32 in [0, 1] on the device."""
    for start in range(0, len(pixels), batch_size):
        yield torch.from_numpy(pixels[start : start + batch_size]).to(device).float() / 255


def _labels(dataset: LabelledDataset) -> np.ndarray:
    if dataset.labels is None:
        raise UsageError(f"task '{dataset.name}' is a segmentation task: it has no labels.")
    return dataset.labels


def _masks(dataset: LabelledDataset) -> np.ndarray:
    if dataset.masks is None:
        raise UsageError(f"task '{dataset.name}' is a classification task: it has no masks.")
    return dataset.masks
