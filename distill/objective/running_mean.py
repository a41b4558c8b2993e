"""A running mean of features over the batches and workers of a run."""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor, nn

from echostill.platform.config import Config
from echostill.platform.training.collective import over_workers


class RunningMeanSettings(Config):
    """How running means forget."""

    momentum: float = Field(0.99, ge=0, lt=1, description="Memory of the running mean.")


class RunningMean(nn.Module):
    """Exponential mean of features over all workers, corrected for its start at zero.

    The mean after t updates is sum_k m^(t-k) (1-m) x_k / (1 - m^t): after the first it is the
    first batch's mean, and no batch ever counts as zero. Its state is part of the checkpoint.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("total", torch.zeros(dim))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """As :meth:`take`, for the features (..., D) of a batch in one piece."""
        return self.take([_sum_and_count(features)])

    def take_features(self, parts: Iterable[Tensor]) -> Tensor:
        """As :meth:`take`, for the features (..., D) of each part."""
        return self.take(_sum_and_count(features) for features in parts)

    @torch.no_grad()
    def take(self, parts: Iterable[tuple[Tensor, int]]) -> Tensor:
        """Take in a batch while training, and return the mean (D,).

        Evaluation takes nothing in; before any training it gives the mean of this batch.

        Args:
            parts: For each part of the batch the sum of its features (D,) and their number.
        """
        if not self.training and self.weight > 0:
            return self.total / self.weight
        sums, counts = zip(*parts, strict=True)
        whole = sums[0] if len(sums) == 1 else torch.stack(sums).sum(dim=0)
        if not self.training:
            alone: Tensor = whole / sum(counts)
            return alone
        together = over_workers(torch.cat([whole, whole.new_full((1,), sum(counts))]), "sum")
        mean = together[:-1] / together[-1]
        self.total.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)
        self.weight.mul_(self.momentum).add_(1 - self.momentum)
        return self.total / self.weight


def _sum_and_count(features: Tensor) -> tuple[Tensor, int]:
    rows = features.flatten(0, -2)
    return rows.sum(dim=0), len(rows)
