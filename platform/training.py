"""The training loop shared by pretraining, the proxy and distillation.

A :class:`TrainingTask` owns its models and its loss. The loop owns the optimiser, the schedule, the
order of the images and the checkpoint; it knows nothing of Ray (see ``ray_training``).
"""

import math
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from echostill.platform.augment import AugmentSettings, augment
from echostill.platform.config import Config, execution
from echostill.platform.errors import EchostillError
from echostill.platform.sampling import draw, worker_share
from echostill.platform.staging import StagedImages


class TrainingSettings(Config):
    """Optimiser, schedule and pace of a training run."""

    steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(64, ge=1, description="Global batch, over all workers.")
    learning_rate: float = Field(1.5e-4, gt=0, description="Peak rate for a batch of 256.")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps with a rising rate.")
    gradient_clip: float | None = Field(1.0, description="Largest global gradient norm.")
    augment: AugmentSettings = AugmentSettings()
    balance: Literal["none", "organ"] = Field(
        "none", description="Draw all images alike, or every organ equally often (USFM)."
    )
    views_per_image: int | None = Field(
        None,
        ge=1,
        description="Views (crop, flip, masks) of an image before they repeat; default never.",
    )
    view_seed: int = Field(
        0, ge=0, description="Seed of repeating views: runs of every seed share them."
    )
    checkpoints: int = execution(
        8, "Checkpoints over the run; a restart repeats at most one.", ge=1
    )
    log_every: int = execution(10, "Steps between logged metrics.", ge=1)
    workers: int = execution(1, "Ray Train workers.", ge=1)
    threads: int | None = execution(None, "Threads per CPU worker; default all CPUs shared out.")

    def views(self, seed: int, epochs: np.ndarray) -> tuple[int, np.ndarray]:
        """Return seed and number (B,) of each image's view: its epoch, or that of the finite set.

        A finite set does not depend on the run's seed, so that its teacher outputs can be kept.
        """
        if self.views_per_image is None:
            return seed, epochs
        return self.view_seed, epochs % self.views_per_image

    def rate_at(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then cosine to zero (MAE's schedule)."""
        peak = self.learning_rate * self.batch_size / 256
        rising = self.warmup * self.steps
        if step < rising:
            return peak * (step + 1) / max(rising, 1)
        share = (step - rising) / max(self.steps - rising, 1)
        return peak * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    def describe(self, images: int) -> str:
        """Say the pace in words, for a set of so many images."""
        epochs = self.steps * self.batch_size / max(images, 1)
        return f"{self.steps} x {self.batch_size} images = {epochs:.1f} epochs of {images}"

    def checkpoint_steps(self) -> list[int]:
        """Steps (counted from 1) after which a checkpoint is written; the last step is one."""
        return sorted(
            {math.ceil(self.steps * k / self.checkpoints) for k in range(1, self.checkpoints + 1)}
        )


@dataclass
class Batch:
    """Images of a step on one worker."""

    pixels: Tensor  # (B, 3, S, S) float in [0, 1], augmented
    image_ids: list[str]
    epochs: np.ndarray  # (B,) int64, the epoch each image belongs to, or its view where they repeat

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its pixels on a device."""
        return Batch(self.pixels.to(device, non_blocking=True), self.image_ids, self.epochs)


class TrainingTask(nn.Module):
    """A model with its loss; ``forward`` returns the mean loss and named scalars."""

    image_size: int

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Place:
    """Where a worker stands: its rank, how many there are, its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class TrainingState:
    """Everything a restart needs, beside the task's own weights."""

    step: int = 0
    optimiser: dict[str, Any] | None = None
    history: list[dict[str, float]] = field(default_factory=list)


def parameter_groups(task: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters: biases, norms and other vectors are not decayed."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in task.parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def make_batch(
    images: StagedImages,
    settings: TrainingSettings,
    seed: int,
    image_size: int,
    step: int,
    place: Place,
) -> Batch:
    """Draw, read and augment this worker's share of the batch of a step."""
    strata = images.organ_codes if settings.balance == "organ" else None
    whole = draw(seed, len(images), step * settings.batch_size, settings.batch_size, strata)
    share = worker_share(whole, place.rank, place.size)
    view_seed, views = settings.views(seed, share.epochs)
    return view_batch(images, share.rows, views, image_size, view_seed, settings.augment)


def view_batch(
    images: StagedImages,
    rows: np.ndarray,
    views: np.ndarray,
    image_size: int,
    seed: int,
    settings: AugmentSettings,
) -> Batch:
    """Read images by row and augment them: each view depends on (seed, view, image id) alone."""
    pixels = torch.from_numpy(images.pixels[rows].astype(np.float32) / 255)
    ids = [images.image_ids[row] for row in rows]
    pixels = augment(pixels, ids, views, image_size, seed, settings)
    return Batch(pixels.expand(-1, 3, -1, -1), ids, views)


def prefetch(make: Callable[[int], Batch], steps: range, depth: int = 2) -> Iterator[Batch]:
    """Make batches in a thread, a few ahead of their use."""
    ready: queue.Queue[Batch | BaseException] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                if stop.is_set():
                    return
                put(make(step))
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="echostill-batches")
    thread.start()
    try:
        for _ in steps:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def train(
    task: TrainingTask,
    model: nn.Module,
    images: StagedImages,
    settings: TrainingSettings,
    seed: int,
    state: TrainingState,
    place: Place,
    on_checkpoint: Callable[[TrainingState], None],
) -> TrainingState:
    """Train until ``settings.steps``, from wherever ``state`` stands.

    Args:
        task: The task, for its image size and parameters.
        model: What is called with a batch: the task itself, or its data-parallel wrapper.
        images: Staged training images.
        settings: Optimiser, schedule, pace.
        seed: Seed of order, crops and masks.
        state: Start of this run, or what a checkpoint held.
        place: This worker's rank and device.
        on_checkpoint: Called on every worker after each checkpoint step.

    Raises:
        EchostillError: The loss stopped being a finite number; names the images of that batch.
    """
    optimiser = torch.optim.AdamW(
        parameter_groups(task, settings.weight_decay), lr=1.0, betas=settings.betas
    )
    if state.optimiser is not None:
        optimiser.load_state_dict(state.optimiser)
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    stops = set(settings.checkpoint_steps())
    task.train()
    todo = range(state.step, settings.steps)
    batches = prefetch(
        lambda step: make_batch(images, settings, seed, task.image_size, step, place), todo
    )
    for step, batch in zip(todo, batches, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = settings.rate_at(step)
        loss, metrics = _forward(model, batch.to(place.device), place)
        if not torch.isfinite(loss):
            raise EchostillError(
                f"the loss became {loss.item()} at step {step + 1}; images of that batch: "
                f"{', '.join(batch.image_ids[:8])}... Lower training.learning_rate or look at them."
            )
        # The data-parallel mean weighs every worker alike: correct for unequal shares of the batch.
        share = len(batch.image_ids) * place.size / settings.batch_size
        (loss * share).backward()
        norm = nn.utils.clip_grad_norm_(parameters, settings.gradient_clip or math.inf)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        state.step = step + 1
        if state.step % settings.log_every == 0 or state.step in stops or step == 0:
            row = {name: float(value) for name, value in metrics.items()}
            row |= {"step": state.step, "learning_rate": settings.rate_at(step)}
            row |= {"gradient_norm": float(norm), "loss": float(loss.detach())}
            row["epoch"] = state.step * settings.batch_size / len(images)
            state.history.append(row)
        if state.step in stops:
            state.optimiser = optimiser.state_dict()
            on_checkpoint(state)
    return state


def _forward(model: nn.Module, batch: Batch, place: Place) -> tuple[Tensor, dict[str, Tensor]]:
    # bfloat16 pays on GPUs with tensor cores; on CPUs its matrix products are very slow.
    if place.device.type == "cuda":
        with torch.autocast("cuda", torch.bfloat16):
            return cast(tuple[Tensor, dict[str, Tensor]], model(batch))
    return cast(tuple[Tensor, dict[str, Tensor]], model(batch))
