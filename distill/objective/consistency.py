"""Consistency of the teacher's two views, and the weight that an image or a token gets from it."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.training.collective import over_workers
from echostill.platform.training.loop import Totals


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
        rows = features.flatten(0, -2)
        return self.take([(rows.sum(dim=0), len(rows))])

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
            return whole / sum(counts)
        together = over_workers(torch.cat([whole, whole.new_tensor([sum(counts)])]), "sum")
        mean = together[:-1] / together[-1]
        self.total.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)
        self.weight.mul_(self.momentum).add_(1 - self.momentum)
        return self.total / self.weight


def consistency_of(spatial: Tensor, frequency: Tensor, mean: Tensor | None = None) -> Tensor:
    """Cosine of the teacher's features of the two views, less the mean feature where one is given.

    Args:
        spatial: (..., D) features of the view with hidden blocks.
        frequency: (..., D) features of the view with stopped bands.
        mean: (D,) or None.

    Returns:
        (...) in [-1, 1], float32 at least; identical features give 1, even both equal to the mean.
    """
    if spatial.dtype != torch.float64:
        spatial, frequency = spatial.float(), frequency.float()
    scale = spatial.norm(dim=-1).maximum(frequency.norm(dim=-1))
    if mean is not None:
        spatial, frequency = spatial - mean, frequency - mean
    first, second = spatial.norm(dim=-1), frequency.norm(dim=-1)
    cosine = (spatial * frequency).sum(dim=-1) / (first * second).clamp_min(1e-30)
    # What is left after centring may be rounding alone; such features have no direction.
    smallest = 16 * torch.finfo(scale.dtype).eps * scale
    nothing = (first <= smallest) & (second <= smallest)
    return torch.where(nothing, 1.0, cosine).clamp(-1, 1)


def consistency_weight(consistency: Tensor, settings: ObjectiveSettings) -> Tensor:
    """Turn consistency into a weight of the same shape, detached.

    ``linear`` is (1 + c) / 2. ``relu`` is max(c, 0). ``softmax`` is the softmax of c / temperature
    over all that is weighted, times how many those are, so that the mean weight is 1.
    ``batch-normalised`` is (c - min) / (max - min), and 1 where all are equal. The last two look
    at the whole batch, over all workers.
    """
    c = consistency.detach()
    if settings.weighting == "fixed":
        return torch.full_like(c, settings.fixed_weight)
    if settings.weighting == "linear":
        return (1 + c) / 2
    if settings.weighting == "relu":
        return c.clamp_min(0)
    highest = over_workers(c.max(), "max")
    if settings.weighting == "softmax":
        raised = ((c - highest) / settings.temperature).exp()
        together = over_workers(torch.stack([raised.sum(), c.new_tensor(c.numel())]), "sum")
        return raised * together[1] / together[0]
    lowest = over_workers(c.min(), "min")
    width = highest - lowest
    return torch.where(width > 0, (c - lowest) / width.clamp_min(1e-12), 1.0)


def weight_statistics(
    images: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], totals: Totals, prefix: str
) -> dict[str, float]:
    """Say how the weight acts on a batch.

    Args:
        images: ``weight``, ``consistency`` and ``reconstruction_error`` of each image, (B,) each.
        groups: Organ and device of each image.
        totals: Sums over the run: the mean weight of each organ and device is added to them.
        prefix: Put before every name.

    Returns:
        Mean and spread (standard deviation) of weight and consistency, and Pearson's correlation
        of the weight with the reconstruction error, where either varies.
    """
    weight, error = images["weight"], images["reconstruction_error"]
    row = {
        "weight_mean": float(weight.mean()),
        "weight_std": float(weight.std(unbiased=False)),
        "consistency_mean": float(images["consistency"].mean()),
        "consistency_std": float(images["consistency"].std(unbiased=False)),
    }
    spreads = weight.double().std(unbiased=False) * error.double().std(unbiased=False)
    if spreads > 1e-12:
        both = (weight.double() - weight.double().mean()) * (error.double() - error.double().mean())
        row["weight_error_correlation"] = float(both.mean() / spreads)
    for kind, names in groups.items():
        for name in sorted(set(names)):
            chosen = torch.tensor([one == name for one in names])
            totals.add(f"{prefix}weight_by_{kind}/{name or 'not stated'}", weight[chosen])
    return {prefix + name: value for name, value in row.items()}
