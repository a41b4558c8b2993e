"""The published protocol: what the public downstream code of TinyUSFM does.

AdamW with one rate for head and encoder, a linear warm-up and a linear decay by epochs, batches of
8 of a fresh order each epoch; the epoch with the best validation accuracy or Dice is tested. The
order, the augmentation and the head's initial weights depend on the seed alone.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from echostill.eval.finetune import predict
from echostill.eval.heads import SegmentationTask
from echostill.eval.metrics import accuracy, dice
from echostill.eval.unius.protocols.augmentation import UNIFORMS, augment_batch
from echostill.eval.unius.protocols.data import BenchData, nested_share
from echostill.eval.unius.protocols.frozen import extend, moved
from echostill.eval.unius.protocols.measures import (
    CLEAN,
    Measured,
    measure_classification,
    measure_segmentation,
)
from echostill.eval.unius.protocols.networks import network_for
from echostill.eval.unius.protocols.settings import ProtocolSettings, PublishedSettings
from echostill.platform.computing.precision import Precision, computing, gradient_scaler
from echostill.platform.errors import EchostillError
from echostill.platform.models import Encoder
from echostill.platform.seeding import stream, unit_uniforms

METHOD = "fine-tuned"
BATCH = 32  # images that are predicted at a time


@dataclass(frozen=True)
class Trained:
    """A trained network, in the state of its best epoch."""

    network: nn.Module
    losses: np.ndarray  # (steps,) float64
    scores: dict[int, float]  # of the validation images, by epoch


def run_published(
    encoder: Encoder | None,
    data: BenchData,
    settings: ProtocolSettings,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> list[Measured]:
    """Train a copy of an encoder with a new head (without one, a U-Net), and test it."""
    tested = data.sides["test"]
    extended = extend(data, tested, settings, seed)
    measured = []
    for share in settings.shares:
        rows = nested_share(data, data.sides["train"], share, seed)
        trained = train(encoder, data, rows, settings.published, seed, device, precision)
        for condition, (own, where) in extended.conditions.items():
            pixels = extended.dataset.pixels[where]
            found = _predict(trained.network, pixels, device, precision)
            about: dict[str, Any] = {"method": METHOD, "condition": condition, "share": share}
            if data.task.kind == "classification":
                measured.append(measure_classification(data, own, found, **about))
            else:
                changed = moved(data, extended, own, where)
                native = condition == CLEAN and share == 1
                measured.append(measure_segmentation(changed, own, found, native=native, **about))
    return measured


def train(
    encoder: Encoder | None,
    data: BenchData,
    rows: np.ndarray,
    settings: PublishedSettings,
    seed: int,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> Trained:
    """Train on some rows; the side val chooses the epoch, the last one where it has no image.

    Raises:
        EchostillError: The loss became non-finite.
    """
    segments = data.dataset.masks is not None
    epochs = settings.segmentation_epochs if segments else settings.classification_epochs
    kind = torch.device(device).type
    # Initial weights and drop path use torch's generator: seed it here and restore it afterwards.
    with torch.random.fork_rng(enabled=True, devices=None if kind == "cuda" else []):
        torch.manual_seed(seed)
        network: Any = network_for(
            copy.deepcopy(encoder),
            len(data.dataset.class_names),
            segments=segments,
            width=settings.head_width,
            dice_weight=settings.dice_weight,
        ).to(device)
        network.requires_grad_(True)
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=settings.weight_decay)
        scaler = gradient_scaler(precision, device)
        losses, scores = [], {}
        best, kept = -np.inf, None
        for epoch in range(epochs):
            network.train()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(epoch, epochs, settings)
            for pixels, targets in batches(data, rows, epoch, settings, seed):
                with computing(precision, device):
                    loss = network.training_step(pixels.to(device), targets.to(device))
                losses.append(loss.item())
                if not np.isfinite(losses[-1]):
                    raise EchostillError(
                        f"{data.task.name}: the loss became {losses[-1]} in epoch {epoch + 1}. "
                        "Lower protocol.published.learning_rate."
                    )
                optimiser.zero_grad(set_to_none=True)
                torch.autograd.backward(scaler.scale(loss))
                scaler.step(optimiser)
                scaler.update()
            last = epoch == epochs - 1
            if len(data.sides["val"]) and ((epoch + 1) % settings.validate_every == 0 or last):
                scores[epoch] = _score(network, data, device, precision)
                if scores[epoch] > best:
                    best, kept = scores[epoch], copy.deepcopy(network.state_dict())
        if kept is not None:
            network.load_state_dict(kept)
    return Trained(network.eval(), np.array(losses), scores)


def learning_rate(epoch: int, epochs: int, settings: PublishedSettings) -> float:
    """Return the rate of an epoch, counted from 0: rises linearly, then falls linearly."""
    warmup = min(settings.warmup_epochs, epochs - 1)
    if epoch < warmup:
        return settings.learning_rate * (epoch + 1) / warmup
    falling = (epoch - warmup) / max(epochs - warmup, 1)
    low = settings.last_learning_rate
    return low + (settings.learning_rate - low) * (1 - falling)


def batches(
    data: BenchData, rows: np.ndarray, epoch: int, settings: PublishedSettings, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's augmented batches: pixels (B, 3, S, S) in [0, 1], labels or masks."""
    dataset = data.dataset
    targets = dataset.labels if dataset.labels is not None else dataset.masks
    assert targets is not None
    flips = dataset.masks is None or data.task.lesions
    order = rows[stream(seed, "published order", epoch).permutation(len(rows))]
    for start in range(0, len(order), settings.batch_size):
        picked = order[start : start + settings.batch_size]
        ids = [data.ids[row] for row in picked]
        uniforms = unit_uniforms(seed, epoch, ids, "published", UNIFORMS)
        pixels = torch.from_numpy(dataset.pixels[picked]).float() / 255
        wanted = torch.from_numpy(targets[picked])
        yield augment_batch(pixels, wanted, uniforms, settings, flips=flips)


def _score(
    network: Any, data: BenchData, device: torch.device | str, precision: Precision
) -> float:
    rows = data.sides["val"]
    found = _predict(network, data.dataset.pixels[rows], device, precision)
    if data.dataset.labels is not None:
        return accuracy(data.dataset.labels[rows], found.argmax(1))
    assert data.dataset.masks is not None
    classes = range(1, len(data.dataset.class_names) + 1)
    pairs = zip(found, data.dataset.masks[rows], strict=True)
    return float(np.mean([dice(own == k, mask == k) for own, mask in pairs for k in classes]))


def _predict(
    network: Any, pixels: np.ndarray, device: torch.device | str, precision: Precision
) -> np.ndarray:
    """Return probabilities (N, C), or masks (N, S, S) uint8: the class with the largest share."""
    network = network.to(device)
    if not isinstance(network, SegmentationTask):
        return predict(network, pixels, precision=precision)
    parts = [  # shares of all images at once would not fit in memory
        predict(network, pixels[start : start + BATCH], precision=precision)
        .argmax(1)
        .astype(np.uint8)
        for start in range(0, len(pixels), BATCH)
    ]
    return np.concatenate(parts)
