"""How far the teacher's features of two views agree, and the weight that follows from it."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from echostill.distill.objective.outputs import Needs, ViewOutputs
from echostill.distill.objective.running_mean import RunningMean, RunningMeanSettings
from echostill.distill.objective.terms.term import at_least_float32
from echostill.distill.objective.terms.tokens import normalise_tokens
from echostill.distill.objective.views import Views
from echostill.platform.config import added
from echostill.platform.models import Encoder
from echostill.platform.training.collective import over_workers
from echostill.platform.training.loop import Totals

Weighting = Literal["linear", "relu", "softmax", "batch-normalised", "fixed"]


class ConsistencySettings(RunningMeanSettings):
    """How the teacher's consistency is measured, and how it weighs."""

    consistency: Literal["last", "each"] = Field(
        "last", description="One weight from the teacher's last features, or one per matched layer."
    )
    level: Literal["sample", "token"] = Field("sample", description="What a weight belongs to.")
    centring: bool = Field(True, description="Subtract the running mean feature first.")
    centre: Literal["joint", "view"] | None = added(
        "What is subtracted: one running mean of both views (joint, the default), or that of each "
        "view from its own features (view)."
    )
    weighting: Weighting = Field(
        "linear", description="From consistency to weight; 'fixed' in presets that weigh nothing."
    )
    temperature: float = Field(0.1, gt=0, description="Of the softmax weighting.")
    fixed_weight: float = Field(1.0, ge=0, description="The weight when it is fixed.")


def consistency_of(spatial: Tensor, frequency: Tensor, mean: Tensor | None = None) -> Tensor:
    """Cosine of the teacher's features of two views, after the mean feature is subtracted.

    Args:
        spatial: (..., D) features of the view with hidden blocks.
        frequency: (..., D) features of the view with stopped bands.
        mean: (D,) of both views, (2, D) with that of each, or None to subtract nothing.

    Returns:
        (...) in [-1, 1], float32 at least; identical features give 1, even both equal to the mean.
    """
    spatial, frequency = at_least_float32(spatial), at_least_float32(frequency)
    scale = spatial.norm(dim=-1).maximum(frequency.norm(dim=-1))
    if mean is not None:
        of_spatial, of_frequency = mean.expand(2, -1).unbind()
        spatial, frequency = spatial - of_spatial, frequency - of_frequency
    first, second = spatial.norm(dim=-1), frequency.norm(dim=-1)
    cosine = (spatial * frequency).sum(dim=-1) / (first * second).clamp_min(1e-30)
    # What is left after centring may be rounding alone; such features have no direction.
    smallest = 16 * torch.finfo(scale.dtype).eps * scale
    nothing = (first <= smallest) & (second <= smallest)
    return torch.where(nothing, 1.0, cosine).clamp(-1, 1)


def consistency_weight(consistency: Tensor, settings: ConsistencySettings) -> Tensor:
    """Turn consistency into a weight of the same shape, detached.

    ``linear`` is (1 + c) / 2. ``relu`` is max(c, 0). ``softmax`` is the softmax of c / temperature
    over all values, times their number, so that the mean weight is 1. ``batch-normalised`` is
    (c - min) / (max - min), and 1 where all are equal. The last two are taken over the whole batch
    on all workers.
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
        together = over_workers(torch.stack([raised.sum(), c.new_full((), c.numel())]), "sum")
        return raised * together[1] / together[0]
    lowest = over_workers(c.min(), "min")
    width = highest - lowest
    return torch.where(width > 0, (c - lowest) / width.clamp_min(1e-12), 1.0)


class Consistency:
    """Consistency of the teacher's two views, by image or by token.

    Attributes:
        needs: What it needs of the teacher.
        modules: The running means, by the names that checkpoints have for them.
    """

    def __init__(
        self, teacher: Encoder, settings: ConsistencySettings, views: Views, blocks: Sequence[int]
    ) -> None:
        """Choose the features that are compared.

        Args:
            teacher: Whose features they are.
            settings: Which features, and how they weigh.
            views: The views that the teacher is shown; a single view agrees with itself.
            blocks: The teacher's matched blocks, for ``consistency: each``.
        """
        self.settings, self.compares = settings, views == "separated"
        self.blocks = tuple(blocks) if settings.consistency == "each" else ()
        self.by_token = settings.level == "token"
        means = 2 if settings.centre == "view" else 1
        # Of pooled features, unless the final tokens themselves are compared.
        last = teacher.dim if self.by_token and not self.blocks else teacher.feature_dim
        self.mean = RunningMean(means * last, settings.momentum)
        self.block_means = [
            RunningMean(means * teacher.layer(block).dim, settings.momentum)
            for block in self.blocks
        ]
        self.modules: dict[str, nn.Module] = {"mean_feature": self.mean}
        if self.block_means:
            self.modules["layer_means"] = nn.ModuleList(self.block_means)
        if not self.compares or not (self.blocks or self.by_token):
            self.needs = Needs(pooled=True)
        else:
            self.needs = Needs(tokens=not self.blocks, blocks=self.blocks)

    def of(self, outputs: Sequence[ViewOutputs]) -> list[Tensor]:
        """Compare the two views in each part of a worker's batch.

        The running means take in the whole batch, over all parts and workers.

        Returns:
            For each part (L, B), or (L, B, N) by token: L is 1, or the number of matched blocks.
            All are 1 where there is a single view.
        """
        if not self.compares:
            pooled = [_pooled(part) for part in outputs]
            return [torch.ones(1, len(each), device=each.device) for each in pooled]
        compared = list(zip(self.block_means, self._by_block(outputs), strict=True))
        found: list[list[Tensor]] = [[] for _ in outputs]
        for running, features in compared or [(self.mean, self._last(outputs))]:
            mean = self._take(running, features) if self.settings.centring else None
            for part, feature in zip(found, features, strict=True):
                spatial, frequency = feature.chunk(2)
                part.append(consistency_of(spatial, frequency, mean))
        return [torch.stack(part) for part in found]

    def _take(self, running: RunningMean, features: Sequence[Tensor]) -> Tensor:
        """Take in a batch's features (2 B, ..., D); return their mean (D,), or by view (2, D)."""
        if self.settings.centre != "view":
            return running.take_features(features)
        pairs = [torch.cat(feature.chunk(2), dim=-1) for feature in features]
        return running.take_features(pairs).reshape(2, -1)

    def _last(self, outputs: Sequence[ViewOutputs]) -> list[Tensor]:
        features = [_tokens(part) if self.by_token else _pooled(part) for part in outputs]
        return [at_least_float32(feature) for feature in features]

    def _by_block(self, outputs: Sequence[ViewOutputs]) -> list[list[Tensor]]:
        tokens = [
            [normalise_tokens(part.blocks[block]) for part in outputs] for block in self.blocks
        ]
        if self.by_token:
            return tokens
        return [[part.mean(dim=1) for part in parts] for parts in tokens]


def weight_statistics(
    images: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], totals: Totals, prefix: str
) -> dict[str, float]:
    """Describe how the weight acts on a batch.

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


def _pooled(outputs: ViewOutputs) -> Tensor:
    assert outputs.pooled is not None  # it is among the needs
    return outputs.pooled


def _tokens(outputs: ViewOutputs) -> Tensor:
    assert outputs.tokens is not None  # it is among the needs
    return outputs.tokens
