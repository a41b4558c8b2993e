"""Settings of a training run: optimiser, schedule, pace, workers."""

import math
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from echostill.platform.computing.precision import Precision
from echostill.platform.config import Config, added, execution
from echostill.platform.training.augment import AugmentSettings


class TrainingSettings(Config):
    """Optimiser, schedule and pace of a training run."""

    steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch_size: int = Field(64, ge=1, description="Global batch, over all workers.")
    learning_rate: float = Field(1.5e-4, gt=0, description="Peak rate for a batch of 256.")
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = Field(0.1, ge=0, le=1, description="Share of the steps with a rising rate.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the rate goes on after the warm-up."
    )
    gradient_clip: float | None = Field(
        1.0, ge=0, description="Largest global gradient norm; null or 0 clips nothing."
    )
    clipping: Literal["absolute", "relative"] | None = added(
        "What gradient_clip is: the norm itself (absolute, the default), or a multiple of the mean "
        "norm of about the last hundred steps (relative)."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Factor on the rate per block, from the last block backwards."
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of averaged weights, which are then the result."
    )
    precision: Precision = Field(
        "auto",
        description="Of matrix products; automatic is bfloat16 on GPUs, float32 on CPUs. The "
        "teacher of `echostill cache` computes in it too.",
    )
    augment: AugmentSettings = AugmentSettings()
    balance: Literal["none", "organ", "weighted"] = Field(
        "none",
        description="Draw all images alike, every organ equally often (USFM), or by organ_weights.",
    )
    organ_weights: dict[str, float] = Field(
        {},
        description="Weight of an image by its organ, for balance 'weighted'; default 1.",
    )
    views_per_image: int | None = Field(
        None,
        ge=1,
        description="Views (crop, flip, masks) of an image before they repeat; default never.",
    )
    view_seed: int = Field(
        0, ge=0, description="Seed of repeating views: runs of every seed share them."
    )
    deterministic: bool = execution(
        False, "Refuse operations that do not repeat bit for bit; slower on GPUs."
    )
    compile: bool = execution(
        False, "Compile models with torch.compile; benchmarks/distill_throughput.py measures it."
    )
    checkpoints: int = execution(
        8, "Checkpoints over the run; a restart repeats at most one.", ge=1
    )
    log_every: int = execution(10, "Steps between logged metrics.", ge=1)
    keep: int = execution(2, "Checkpoints kept while the run lasts.", ge=1)
    workers: int | tuple[int, int] | None = execution(
        None,
        "Ray Train workers, or [fewest, most] to follow the nodes that come and go; default one "
        "per GPU where GPUs compute, and one on CPUs.",
        rounds=True,
    )
    resize_seconds: float = execution(60.0, "How often an elastic run looks for nodes.", ge=0)
    micro_batch: int | None = execution(
        None, "Most images of a worker in one pass; gradients add up to the global batch.", ge=1
    )
    sharding: Literal["none", "full"] = execution(
        "none", "Full shards weights and optimiser over the workers (FSDP), for large models."
    )
    crops_on: Literal["auto", "cpu", "device"] = execution(
        "auto",
        "Where crops are cut out of the staged images: by threads on the CPU, or on the device "
        "that trains, which auto does on GPUs. They are equal up to 1e-6.",
        rounds=True,
    )
    loaders: int | None = execution(
        None,
        "Threads of a worker that read images ahead; default none on CPUs, where they would hold "
        "up those that compute, beside a GPU a thread per CPU of the worker, at most 8.",
        ge=0,
    )
    threads: int | None = execution(
        None,
        "Threads of a worker; default the CPUs of its node shared out, as kept with the run. The "
        "proxy, on which the coreset depends, has 2 over all its workers on any machine.",
        rounds=True,
    )

    @model_validator(mode="after")
    def _workers_fit(self) -> "TrainingSettings":
        fewest, most = self.worker_range
        if not 1 <= fewest <= most:
            raise ValueError(f"workers {self.workers} must be at least 1, as [fewest, most]")
        if most > self.batch_size:
            raise ValueError(
                f"a batch_size of {self.batch_size} leaves some of {most} workers without an image"
            )
        if self.ema is not None and self.sharding == "full":
            raise ValueError("ema averages whole weights, and sharding 'full' has none: use one")
        if any(weight < 0 for weight in self.organ_weights.values()):
            raise ValueError("organ_weights must not be negative")
        if self.organ_weights and self.balance != "weighted":
            raise ValueError("organ_weights are for balance 'weighted'")
        return self

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers; one where their number follows the GPUs."""
        if isinstance(self.workers, tuple):
            return self.workers
        count = 1 if self.workers is None else self.workers
        return count, count

    def seed_of_views(self, seed: int) -> int:
        """Return the seed of crops and masks of a run with a seed.

        Views that repeat do not depend on the run's seed, so that a teacher's outputs can be kept.
        """
        return seed if self.views_per_image is None else self.view_seed

    def views(self, epochs: np.ndarray) -> np.ndarray:
        """Return the number (B,) of each image's view: its epoch, or that of the finite set."""
        return epochs if self.views_per_image is None else epochs % self.views_per_image

    def rate_at(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then cosine to zero (MAE's) or another way."""
        peak = self.learning_rate * self.batch_size / 256
        rising = self.warmup * self.steps
        if step < rising:
            return peak * (step + 1) / max(rising, 1)
        if self.schedule == "constant":
            return peak
        share = (step - rising) / max(self.steps - rising, 1)
        if self.schedule == "linear":
            return peak * (1 - min(share, 1.0))
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
