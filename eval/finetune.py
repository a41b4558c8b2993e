"""Fine-tuning: a head on an encoder, both trained until they no longer improve.

How long, and at which rate, is chosen by group inside the training side, for every model alike: a
number of steps that suits one model would leave another half trained.

Batches and augmentation depend only on (seed, step, image), and the head's initial weights only on
the seed. The encoder that is passed in is not changed: a copy is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from echostill.eval.datasets import LabelledDataset
from echostill.eval.heads import ClassificationTask, SegmentationTask
from echostill.eval.metrics import (
    balanced_accuracy,
    classification_metrics,
    segmentation_metrics,
)
from echostill.eval.probes import pooled_features, require_size
from echostill.eval.probing.masks import best_threshold, cut
from echostill.eval.splits import Split, group_split
from echostill.platform.computing.precision import Precision, computing, gradient_scaler
from echostill.platform.config import Config
from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.training.augment import uniforms_per_image
from echostill.platform.training.optimisation import clip_gradients, parameter_groups
from echostill.platform.training.sampling import draw

if TYPE_CHECKING:
    from echostill.platform.models import Encoder

HALF = 0.5  # threshold where there is nothing to choose it on
INNER_SHARE = 0.25


class FineTuneSettings(Config):
    """How heads are trained.

    The published run is AdamW, 1e-4, batch 8, no weight decay, 400 to 1000 epochs. In the few steps
    of a laptop run every model with plain cross-entropy ends by predicting only the most frequent
    class, or no foreground at all. By default the loss is therefore class-balanced and half Dice.
    """

    steps: int = Field(2000, ge=1, description="Most optimiser steps; the rate falls towards it.")
    check_every: int = Field(25, ge=1, description="Steps between two looks at the inner side.")
    patience: int = Field(8, ge=1, description="Looks without a better metric, then it ends.")
    rates: tuple[float, ...] = Field(
        (1.0, 0.25),
        min_length=1,
        description="Factors of both peak rates to try; the inner side chooses.",
    )
    batch_size: int = Field(16, ge=2)
    head_learning_rate: float = Field(1e-2, gt=0, description="Peak rate of the new head.")
    encoder_learning_rate: float = Field(2e-4, gt=0, description="Peak rate of the encoder.")
    weight_decay: float = Field(0.0, ge=0)
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor on the encoder's rate per block, from the last block backwards. The "
        "published 0.8 has no effect in the published code, which gives every group the same rate.",
    )
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps with a rising rate.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest global gradient norm.")
    class_balanced: bool = Field(
        True, description="Weight the classes equally in the loss; false as published."
    )
    dice_weight: float = Field(
        0.5, ge=0, le=1, description="Share of the soft Dice loss in segmentation; 0 as published."
    )
    frozen: bool = Field(False, description="Train the head only.")
    flip: float = Field(0.5, ge=0, le=1, description="Fraction of images flipped left to right.")
    rotation: float = Field(15.0, ge=0, le=180, description="Largest rotation in degrees.")
    head_width: int = Field(32, ge=1, description="Channels of the pyramid; 128 as published.")

    def rate_share(self, step: int) -> float:
        """Share of the peak rate at a step: linear warm-up, then linear decay towards zero."""
        rising = self.warmup * self.steps
        if step < rising:
            return min((step + 1) / rising, 1.0)
        return (self.steps - step) / max(self.steps - rising, 1.0)


@dataclass(frozen=True)
class FineTuned:
    """Result of a fine-tuning run."""

    metrics: dict[str, float]  # on the test side
    predictions: np.ndarray  # classification: probabilities (M, C); segmentation: masks (M, S, S)
    losses: np.ndarray  # (steps,) float64
    converged: bool | None  # False: the steps ended while a rate still improved; None: not known


def finetune(
    encoder: Encoder,
    dataset: LabelledDataset,
    split: Split,
    settings: FineTuneSettings,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> FineTuned:
    """Fine-tune a copy of an encoder with a new head on the training side; test on the other.

    A quarter of the training side's groups is the inner side: the weights with its best metric are
    kept, of all rates and looks, and of a segmentation the threshold. Where a class has too few
    groups for that, the first rate is used for all steps, and whether it converged is not known.

    Raises:
        UsageError: The images do not have the encoder's size.
        EchostillError: The loss became non-finite.
    """
    require_size(encoder, dataset.pixels)
    targets = dataset.labels if dataset.labels is not None else dataset.masks
    assert targets is not None
    train, inner = _sides(dataset, split, seed)
    kind = torch.device(device).type
    best: tuple[float, ClassificationTask | SegmentationTask, np.ndarray, float] | None = None
    converged = None if inner is None else True
    for factor in settings.rates if inner is not None else settings.rates[:1]:
        # Drop path and initialisation use torch's generator: seed it here, restore it afterwards.
        with torch.random.fork_rng(enabled=True, devices=None if kind == "cuda" else []):
            torch.manual_seed(seed)
            task = _new_task(encoder, dataset, train, settings).to(device)
            look = None
            if inner is not None:
                look = _Look(task, dataset, train, inner, settings, precision)
            ids = [dataset.files[row] for row in train]
            losses = train_head(
                task,
                dataset.pixels[train],
                targets[train],
                ids,
                settings,
                seed,
                factor,
                look,
                precision,
            )
        if look is None:
            _set_statistics(task, dataset.pixels[train], precision)
            best = (0.0, task, losses, HALF)
            break
        converged = converged and look.converged
        if best is None or look.best > best[0]:
            best = (look.best, look.restored(), losses, look.threshold)
    assert best is not None
    _, task, losses, threshold = best
    predictions = predict(task, dataset.pixels[split.test], precision=precision)
    if dataset.labels is not None:
        metrics = classification_metrics(targets[split.test], predictions)
    else:
        predictions = cut(predictions, threshold)
        metrics = segmentation_metrics(targets[split.test], predictions, dataset.class_names)
        metrics["threshold"] = threshold
    return FineTuned(metrics, predictions, losses, converged)


def _sides(
    dataset: LabelledDataset, split: Split, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows to train on and rows to look at; no inner side where there are too few groups."""
    rows = split.train
    strata = dataset.labels[rows] if dataset.labels is not None else np.zeros(len(rows), np.int64)
    try:
        inner = group_split(dataset.groups[rows], strata, seed, INNER_SHARE)
    except UsageError:
        return rows, None
    return rows[inner.train], rows[inner.test]


def _new_task(
    encoder: Encoder, dataset: LabelledDataset, train: np.ndarray, settings: FineTuneSettings
) -> ClassificationTask | SegmentationTask:
    own, classes = copy.deepcopy(encoder), len(dataset.class_names)
    if dataset.labels is None:
        return SegmentationTask(own, classes, settings.head_width, settings.dice_weight)
    weights = None
    if settings.class_balanced:
        counts = np.bincount(dataset.labels[train], minlength=classes)
        weights = torch.from_numpy(counts.sum() / (classes * np.maximum(counts, 1)))
    return ClassificationTask(own, classes, weights)


def _set_statistics(
    task: ClassificationTask | SegmentationTask, pixels: np.ndarray, precision: Precision
) -> None:
    """Give a classification head the statistics of all that it was trained on."""
    if isinstance(task, ClassificationTask):
        device = next(task.head.parameters()).device
        features = pooled_features(task.encoder, pixels, device=device, precision=precision)
        task.head.set_statistics(torch.from_numpy(features).to(device))


class _Look:
    """Looks at the inner side during a training, and keeps the weights with the best metric."""

    def __init__(
        self,
        task: ClassificationTask | SegmentationTask,
        dataset: LabelledDataset,
        train: np.ndarray,
        inner: np.ndarray,
        settings: FineTuneSettings,
        precision: Precision,
    ) -> None:
        self.precision = precision
        self.task, self.dataset, self.train, self.inner = task, dataset, train, inner
        self.every, self.patience = settings.check_every, settings.patience
        self.best, self.threshold, self.fruitless = -1.0, HALF, 0
        self._kept: dict[str, Tensor] = {}

    def __call__(self) -> bool:
        """Look, and return whether to stop."""
        _set_statistics(self.task, self.dataset.pixels[self.train], self.precision)
        pixels = self.dataset.pixels[self.inner]
        predicted = predict(self.task, pixels, precision=self.precision)
        threshold = HALF
        if self.dataset.labels is not None:
            wanted = self.dataset.labels[self.inner]
            reached = balanced_accuracy(wanted, predicted.argmax(1))
        else:
            assert self.dataset.masks is not None
            reached, threshold = best_threshold(predicted, self.dataset.masks[self.inner])
        self.fruitless += 1
        if reached > self.best:
            self.best, self.threshold, self.fruitless = reached, threshold, 0
            state = self.task.state_dict()
            self._kept = {name: value.detach().clone() for name, value in state.items()}
        return self.converged

    @property
    def converged(self) -> bool:
        """Whether there is nothing to gain by going on: no better for long, or without a fault."""
        return self.fruitless >= self.patience or self.best >= 1

    def restored(self) -> ClassificationTask | SegmentationTask:
        """Return the task with the weights that were kept."""
        self.task.load_state_dict(self._kept)
        return self.task


def train_head(
    task: ClassificationTask | SegmentationTask,
    pixels: np.ndarray,
    targets: np.ndarray,
    image_ids: list[str],
    settings: FineTuneSettings,
    seed: int,
    factor: float = 1.0,
    look: Callable[[], bool] | None = None,
    precision: Precision = "float32",
) -> np.ndarray:
    """Train a task in place.

    Args:
        task: Encoder and head, on the device to train on.
        pixels: (n, 3, S, S) uint8.
        targets: (n,) int64 labels or (n, S, S) uint8 masks.
        image_ids: A name per image, for its augmentation.
        settings: Optimiser, schedule, augmentation.
        seed: Seed of order and augmentation.
        factor: Of both peak rates.
        look: Called every ``check_every`` steps and after the last; True ends the training.
        precision: Of matrix products.

    Returns:
        (steps taken,) float64 training losses.
    """
    device = next(task.head.parameters()).device
    _training_mode(task, settings)
    groups = [{"params": list(task.head.parameters()), "peak": settings.head_learning_rate}]
    if settings.frozen:
        task.encoder.requires_grad_(False)
    else:
        peak = settings.encoder_learning_rate
        if settings.layer_decay == 1:
            body = [parameter for parameter in task.encoder.parameters() if parameter.requires_grad]
            groups.append({"params": body, "peak": peak})
        else:
            scaled = parameter_groups(task.encoder, settings.weight_decay, settings.layer_decay)
            groups += [{**group, "peak": peak * group["scale"]} for group in scaled]
    optimiser = torch.optim.AdamW(groups, lr=1.0, weight_decay=settings.weight_decay)
    trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    scaler = gradient_scaler(precision, device)
    losses = np.empty(0)
    unread: list[Tensor] = []
    for step in range(settings.steps):
        picked = draw(seed, len(pixels), step * settings.batch_size, settings.batch_size)
        uniforms = uniforms_per_image(
            seed, picked.epochs, [image_ids[row] for row in picked.rows], "finetune", 2
        )
        images = torch.from_numpy(pixels[picked.rows]).to(device).float() / 255
        wanted = torch.from_numpy(targets[picked.rows]).to(device)
        images, wanted = augment_pair(images, wanted, uniforms, settings)
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * factor * settings.rate_share(step)
        with computing(precision, device):
            loss = task.training_step(images, wanted)
        unread.append(loss.detach())
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimiser)
        clip_gradients(trained, settings.gradient_clip)
        scaler.step(optimiser)
        scaler.update()
        if (step + 1) % settings.check_every and step + 1 < settings.steps:
            continue
        # Reading a loss waits for the device, so those of many steps are read together.
        losses = np.append(losses, torch.stack(unread).double().cpu().numpy())
        unread.clear()
        _require_finite(losses)
        if look is not None:
            if look():
                break
            _training_mode(task, settings)
    return losses


def _require_finite(losses: np.ndarray) -> None:
    wrong = np.flatnonzero(~np.isfinite(losses))
    if len(wrong):
        raise EchostillError(
            f"fine-tuning: the loss became {losses[wrong[0]]} at step {wrong[0] + 1}. Lower "
            "head_learning_rate and encoder_learning_rate."
        )


def _training_mode(task: ClassificationTask | SegmentationTask, settings: FineTuneSettings) -> None:
    task.train()
    if settings.frozen:
        task.encoder.eval()


def augment_pair(
    images: Tensor, targets: Tensor, uniforms: np.ndarray, settings: FineTuneSettings
) -> tuple[Tensor, Tensor]:
    """Flip and rotate images, and their masks with them.

    Args:
        images: (B, 3, S, S) float in [0, 1].
        targets: (B,) labels, returned unchanged, or (B, S, S) masks.
        uniforms: (B, 2) in [0, 1): flip, angle.
        settings: Share of flips, largest angle.

    Returns:
        Images (bilinear) and targets (masks nearest); pixels from outside the image are black, and
        background in the mask.
    """
    angle = torch.from_numpy((2 * uniforms[:, 1] - 1) * np.deg2rad(settings.rotation)).to(images)
    mirror = torch.from_numpy(np.where(uniforms[:, 0] < settings.flip, -1.0, 1.0)).to(images)
    theta = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    theta[:, 0, 0] = mirror * torch.cos(angle)
    theta[:, 0, 1] = -mirror * torch.sin(angle)
    theta[:, 1, 0] = torch.sin(angle)
    theta[:, 1, 1] = torch.cos(angle)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    turned = functional.grid_sample(images, grid, mode="bilinear", align_corners=False)
    if targets.ndim == 3:
        planes = targets[:, None].to(images.dtype)
        planes = functional.grid_sample(planes, grid, mode="nearest", align_corners=False)
        targets = planes[:, 0].round().to(targets.dtype)
    return turned.clamp_(0, 1), targets


@torch.inference_mode()
def predict(
    task: ClassificationTask | SegmentationTask,
    pixels: np.ndarray,
    batch_size: int = 32,
    precision: Precision = "float32",
) -> np.ndarray:
    """Return a trained task's predictions for pixels (N, 3, S, S) uint8, batch by batch."""
    device = next(task.head.parameters()).device
    task.eval()
    parts = []
    for start in range(0, len(pixels), batch_size):
        images = torch.from_numpy(pixels[start : start + batch_size]).to(device).float() / 255
        with computing(precision, device):
            shares = task.predict(images)
        parts.append(shares.cpu().numpy())
    return np.concatenate(parts)
