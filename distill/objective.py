"""Consistency-driven dynamic distillation on top of domain-separated masked image modelling.

Student and teacher see the same two corrupted views of an image, one with hidden blocks and one
with stopped frequencies. Where the teacher's features of the two views agree it is taken to be
reliable, and its tokens weigh more. TinyUSFM's formulas are not public beyond its abstract and
overview figure: what follows is the inferred default, and its choices are settings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from echostill.platform.config import Config
from echostill.platform.errors import UsageError
from echostill.platform.masks import Masks
from echostill.platform.mim import MaskedImageModel, ReconstructionSettings, separated_losses
from echostill.platform.models import Encoder, EncoderOutput

Preset = Literal["tinyusfm", "fixed-weight", "mim-only"]
Weighting = Literal["linear", "relu", "softmax", "batch-normalised", "fixed"]

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tinyusfm": {},
        "fixed-weight": {"weighting": "fixed"},
        "mim-only": {"distil": False},
    }
)


class ObjectiveSettings(Config):
    """The distillation objective. A preset fills in whatever is not given beside it."""

    preset: Preset = Field("tinyusfm", description="Named starting point of the settings below.")
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    distil: bool = Field(True, description="Follow a teacher; without, masked image modelling.")
    beta: float = Field(1.0, ge=0, description="Weight of distillation against reconstruction.")
    layers: tuple[int, ...] | None = Field(
        None, description="Student blocks whose tokens are matched; default each third."
    )
    teacher_layers: tuple[int, ...] | None = Field(
        None, description="Teacher blocks they are matched to; default each third."
    )
    distance: Literal["mse", "cosine"] = Field("mse", description="Distance of matched tokens.")
    target: Literal["standardised", "layer-norm"] = Field(
        "standardised",
        description="Teacher tokens as they are matched: normalised, and then each channel brought "
        "to mean 0 and variance 1 over the data, or normalised alone.",
    )
    level: Literal["sample", "token"] = Field("sample", description="What a weight belongs to.")
    centring: bool = Field(True, description="Subtract the running mean feature first.")
    momentum: float = Field(0.99, ge=0, lt=1, description="Memory of the running mean.")
    weighting: Weighting = Field("linear", description="From consistency to weight.")
    temperature: float = Field(0.1, gt=0, description="Of the softmax weighting.")
    fixed_weight: float = Field(1.0, ge=0, description="The weight when it is fixed.")
    combination: Literal["sum", "balance"] = Field("sum", description="How the losses add up.")

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        name = values.get("preset", "tinyusfm")
        known = PRESETS.get(name, {}) if isinstance(name, str) else {}
        return {**known, **values}

    @model_validator(mode="after")
    def _weights_fit(self) -> "ObjectiveSettings":
        if self.combination == "balance" and self.weighting == "softmax":
            raise ValueError(
                "combination 'balance' needs weights in [0, 1] and those of 'softmax' exceed 1: "
                "use weighting 'linear', 'relu' or 'batch-normalised', or combination 'sum'"
            )
        if self.combination == "balance" and self.weighting == "fixed" and self.fixed_weight > 1:
            raise ValueError("combination 'balance' needs a fixed_weight in [0, 1]")
        if self.layers and self.teacher_layers and len(self.layers) != len(self.teacher_layers):
            raise ValueError("layers and teacher_layers must be equally many")
        return self


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

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Take in features (..., D) while training, and return the mean (D,).

        Evaluation takes nothing in; before any training it gives the mean of these features.
        """
        rows = features.flatten(0, -2)
        if not self.training:
            return self.total / self.weight if self.weight > 0 else rows.mean(dim=0)
        sums = torch.cat([rows.sum(dim=0), rows.new_tensor([len(rows)])])
        together = _over_workers(sums, "sum")
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
    highest = _over_workers(c.max(), "max")
    if settings.weighting == "softmax":
        raised = ((c - highest) / settings.temperature).exp()
        together = _over_workers(torch.stack([raised.sum(), c.new_tensor(c.numel())]), "sum")
        return raised * together[1] / together[0]
    lowest = _over_workers(c.min(), "min")
    width = highest - lowest
    return torch.where(width > 0, (c - lowest) / width.clamp_min(1e-12), 1.0)


def token_distance(
    student: Tensor, teacher: Tensor, distance: str = "mse", moments: Tensor | None = None
) -> Tensor:
    """Distance of matched tokens.

    ``mse`` is the mean square of P h_s - LN(h_t), with LN without affine parameters; ``cosine`` is
    1 - cos of the two. Given moments, LN(h_t) is standardised by channel first: 63 to 69 % of
    the power of the quickstart teacher's normalised tokens is one constant vector (measured on 180
    benchmark images), which an adapter fits at once and from which nothing is learnt.

    Args:
        student: (B, N, D) tokens after the adapter.
        teacher: (B, N, D) tokens as the block gave them.
        distance: ``mse`` or ``cosine``.
        moments: (2 D,) mean and mean square of LN(h_t), by channel.

    Returns:
        (B, N), at least 0.
    """
    target = normalise_tokens(teacher)
    if moments is not None:
        mean, square = moments.chunk(2)
        target = (target - mean) / (square - mean.square()).clamp_min(1e-4).sqrt()
    if distance == "cosine":
        return 1 - functional.cosine_similarity(student, target, dim=-1)
    return (student - target).square().mean(dim=-1)


def normalise_tokens(tokens: Tensor) -> Tensor:
    """LayerNorm without affine parameters, in float32 at least."""
    exact = tokens if tokens.dtype == torch.float64 else tokens.float()
    return functional.layer_norm(exact, exact.shape[-1:])


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss of a batch and what it is made of; all but ``loss`` is detached."""

    loss: Tensor  # scalar
    reconstruction: Tensor  # (B,) L_rec of each image
    parts: dict[str, Tensor]  # named scalars, for the log
    distillation: Tensor | None = None  # (B,) unweighted L_dis; None without a teacher, as below
    weight: Tensor | None = None  # (B,), the mean over tokens at token level
    consistency: Tensor | None = None  # (B,), the mean over tokens at token level


class DistillationObjective(nn.Module):
    """Student, adapters and the running mean; the teacher stands beside them.

    The teacher is neither in ``parameters()`` nor in ``state_dict()``: no gradient, no copy of it
    in each checkpoint, nothing for a data-parallel wrapper to synchronise. It follows ``.to()``.
    """

    def __init__(
        self, student: MaskedImageModel, teacher: Encoder | None, settings: ObjectiveSettings
    ) -> None:
        super().__init__()
        if not settings.distil:
            teacher = None
        elif teacher is None:
            raise UsageError(
                f"objective '{settings.preset}' follows a teacher and none is given: "
                "name one, or use the preset 'mim-only'."
            )
        self.student = student
        self.settings = settings
        self.layers: tuple[int, ...] = ()
        self.teacher_layers: tuple[int, ...] = ()
        # A tuple hides the module from torch's registration.
        self._teacher = () if teacher is None else (teacher,)
        if teacher is None:
            return
        encoder = student.encoder
        self.layers = _layers("layers", settings.layers, encoder)
        self.teacher_layers = _layers("teacher_layers", settings.teacher_layers, teacher)
        if len(self.layers) != len(self.teacher_layers):
            raise UsageError(
                f"{len(self.layers)} student layers cannot be matched to "
                f"{len(self.teacher_layers)} teacher layers: give equally many of both."
            )
        _check_grids(encoder, teacher)
        teacher.eval().requires_grad_(False)
        self.adapters = nn.ModuleList(
            nn.Linear(encoder.dim, teacher.dim, bias=False) for _ in self.layers
        )
        self.mean_feature = RunningMean(teacher.dim, settings.momentum)
        self.token_moments = nn.ModuleList(
            RunningMean(2 * teacher.dim, settings.momentum)
            for _ in self.layers
            if settings.target == "standardised"
        )

    @property
    def teacher(self) -> Encoder | None:
        """The frozen teacher, if the objective follows one."""
        return self._teacher[0] if self._teacher else None

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "DistillationObjective":
        super()._apply(fn, recurse)
        for teacher in self._teacher:
            teacher._apply(fn)
        return self

    def forward(
        self,
        pixels: Tensor,
        spatial_view: Tensor,
        frequency_view: Tensor,
        spatial_mask: Tensor,
        frequency_mask: Tensor,
    ) -> ObjectiveOutput:
        """Compute the loss of a batch.

        Args:
            pixels: (B, 3, S, S) uncorrupted, in [0, 1].
            spatial_view: (B, 3, S, S) with hidden blocks.
            frequency_view: (B, 3, S, S) with stopped bands.
            spatial_mask: (B, S, S) bool, True where hidden.
            frequency_mask: (B, S, S) bool, True where frequencies pass, centred layout.
        """
        views = torch.cat([spatial_view, frequency_view])
        student = self.student(views, self.layers)
        spatial, frequency = student.prediction.chunk(2)
        masks = Masks(spatial_mask, frequency_mask)
        reconstruction = separated_losses(
            spatial, frequency, pixels, masks, self.student.patch_size, self.settings.reconstruction
        )
        parts = {
            "reconstruction": reconstruction.mean,
            "reconstruction_spatial": reconstruction.spatial.mean(),
            "reconstruction_frequency": reconstruction.frequency.mean(),
        }
        teacher = self.teacher
        if teacher is None:
            return _output(reconstruction.mean, reconstruction.loss, parts)
        with torch.no_grad():
            target = teacher(views, self.teacher_layers)
            consistency = self._consistency(teacher, target)
            weight = consistency_weight(consistency, self.settings)
        distances = self._distances(student.encoded, target, teacher.prefix_tokens)
        # At sample level (B, 1) weighs all tokens of an image alike.
        per_token = weight if weight.ndim == 2 else weight[:, None]
        weighted = self.settings.beta * (per_token * distances).mean(dim=1)
        per_image = per_token.mean(dim=1)
        if self.settings.combination == "balance":
            loss = (weighted + (1 - per_image) * reconstruction.loss).mean()
        else:
            loss = reconstruction.mean + weighted.mean()
        if consistency.ndim == 2:
            consistency = consistency.mean(dim=1)
        distillation = distances.mean(dim=1)
        parts |= {
            "distillation": distillation.mean(),
            "weight_mean": per_image.mean(),
            "weight_std": per_image.std(unbiased=False),
            "consistency_mean": consistency.mean(),
            "consistency_std": consistency.std(unbiased=False),
        }
        return _output(
            loss,
            reconstruction.loss,
            parts,
            distillation=distillation.detach(),
            weight=per_image,
            consistency=consistency,
        )

    def _consistency(self, teacher: Encoder, target: EncoderOutput) -> Tensor:
        """Consistency of the teacher's two views: (B,), or (B, N) at token level."""
        features = target.pooled
        if self.settings.level == "token":
            features = target.tokens[:, teacher.prefix_tokens :]
        features = features if features.dtype == torch.float64 else features.float()
        mean = self.mean_feature(features) if self.settings.centring else None
        spatial, frequency = features.chunk(2)
        return consistency_of(spatial, frequency, mean)

    def _distances(self, student: EncoderOutput, target: EncoderOutput, prefix: int) -> Tensor:
        """Sum over layers and views of the distance of each patch token: (B, N).

        The student's tokens are normalised before the adapter, as MAE-Lite does: the raw residual
        stream grows with depth and training, and the adapters would have to follow.
        """
        own_prefix = self.student.encoder.prefix_tokens
        total = torch.zeros((), device=target.pooled.device)
        pairs = zip(self.adapters, student.intermediate, target.intermediate, strict=True)
        for layer, (adapter, tokens, wanted) in enumerate(pairs):
            matched = adapter(normalise_tokens(tokens[:, own_prefix:]))
            wanted = wanted[:, prefix:]
            moments = None
            if self.settings.target == "standardised":
                normalised = normalise_tokens(wanted)
                moments = self.token_moments[layer](
                    torch.cat([normalised, normalised.square()], dim=-1)
                )
            total = total + token_distance(matched, wanted, self.settings.distance, moments)
        spatial, frequency = total.chunk(2)
        return spatial + frequency


def _output(
    loss: Tensor, reconstruction: Tensor, parts: dict[str, Tensor], **tensors: Tensor
) -> ObjectiveOutput:
    named = {"loss": loss, **parts}
    return ObjectiveOutput(
        loss=loss,
        reconstruction=reconstruction.detach(),
        parts={name: value.detach() for name, value in named.items()},
        **tensors,
    )


def _layers(name: str, wanted: tuple[int, ...] | None, encoder: Encoder) -> tuple[int, ...]:
    layers = wanted or encoder.third_layers()
    for layer in layers:
        if not 1 <= layer <= encoder.depth:
            raise UsageError(
                f"{name} names block {layer}, but '{encoder.name}' has blocks 1 to {encoder.depth}."
            )
    if len(set(layers)) != len(layers):
        raise UsageError(f"{name} {layers} names a block twice.")
    return tuple(layers)


def _check_grids(student: Encoder, teacher: Encoder) -> None:
    if student.image_size != teacher.image_size or student.patch_size != teacher.patch_size:
        raise UsageError(
            f"student '{student.name}' cuts {student.image_size} pixels into patches of "
            f"{student.patch_size}, teacher '{teacher.name}' {teacher.image_size} into patches of "
            f"{teacher.patch_size}: tokens are matched one to one, so choose a student with the "
            "teacher's image size and patch size."
        )


def _over_workers(values: Tensor, operation: Literal["sum", "max", "min"]) -> Tensor:
    """Combine values of all data-parallel workers; alone, return them as they are."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    combined = values.clone()
    torch.distributed.all_reduce(
        combined, op=getattr(torch.distributed.ReduceOp, operation.upper())
    )
    return combined
