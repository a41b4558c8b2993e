"""Patch tokens after some blocks are matched to the teacher's, each block through an adapter."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from echostill.distill.objective.outputs import Needs, StudentOutput, ViewOutputs
from echostill.distill.objective.running_mean import RunningMean, RunningMeanSettings
from echostill.distill.objective.terms.term import (
    Losses,
    Term,
    TermLoss,
    at_least_float32,
    equally_many,
    matched_blocks,
)
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import Encoder

Distance = Literal["mse", "cosine"]


class TokenSettings(RunningMeanSettings):
    """Which tokens are matched, and how."""

    token_weight: float = Field(1.0, ge=0, description="Weight of matched tokens.")
    layers: tuple[int, ...] | None = Field(
        None, description="Student blocks whose tokens are matched; default each third."
    )
    teacher_layers: tuple[int, ...] | None = Field(
        None, description="Teacher blocks they are matched to; default each third."
    )
    distance: Distance = Field("mse", description="Distance of matched tokens.")
    target: Literal["standardised", "layer-norm"] = Field(
        "standardised",
        description="Teacher tokens as they are matched: normalised, and then each channel brought "
        "to mean 0 and variance 1 over the data, or normalised alone.",
    )

    @model_validator(mode="after")
    def _layers_pair(self) -> "TokenSettings":
        equally_many(self, "layers", "teacher_layers")
        return self


def normalise_tokens(tokens: Tensor) -> Tensor:
    """LayerNorm without affine parameters, in float32 at least."""
    exact = at_least_float32(tokens)
    return functional.layer_norm(exact, exact.shape[-1:])


def standardise(normalised: Tensor, moments: Tensor) -> Tensor:
    """Bring each channel of normalised tokens to mean 0 and variance 1 over the data.

    63 to 69 % of the power of the quickstart teacher's normalised tokens is one constant vector
    (measured on 180 benchmark images). An adapter fits it at once, and nothing is learnt from it.

    Args:
        normalised: (..., D) tokens.
        moments: (2 D,) mean and mean square by channel.
    """
    mean, square = moments.chunk(2)
    return (normalised - mean) / (square - mean.square()).clamp_min(1e-4).sqrt()


def token_distance(student: Tensor, target: Tensor, distance: Distance = "mse") -> Tensor:
    """Distance of matched tokens (FitNets; MAE-Lite's hidden distillation).

    ``mse`` is the mean square of the difference over channels; ``cosine`` is 1 - cos.

    Args:
        student: (B, N, D) tokens after the adapter.
        target: (B, N, D) teacher tokens, normalised, and standardised where that is asked for.
        distance: ``mse`` or ``cosine``.

    Returns:
        (B, N), at least 0.
    """
    if distance == "cosine":
        return 1 - functional.cosine_similarity(student, target, dim=-1)
    return functional.mse_loss(student, target, reduction="none").mean(dim=-1)


class TokenMatching(TermLoss):
    """Distances of patch tokens; a bias-free linear adapter brings the student's to their width.

    The student's tokens are normalised before the adapter, as MAE-Lite does: the raw residual
    stream grows with depth and training, and the adapters would have to follow.
    """

    def __init__(
        self, student: MaskedImageModel, teacher: Encoder, settings: TokenSettings
    ) -> None:
        encoder = student.encoder
        self.distance = settings.distance
        self.blocks, self.teacher_blocks = matched_blocks(
            "layers",
            (encoder, settings.layers, encoder.third_layers()),
            (teacher, settings.teacher_layers, teacher.third_layers()),
        )
        self.student, self.teacher = Needs(blocks=self.blocks), Needs(blocks=self.teacher_blocks)
        self.adapters = nn.ModuleList(
            nn.Linear(encoder.layer(own).dim, teacher.layer(other).dim, bias=False)
            for own, other in zip(self.blocks, self.teacher_blocks, strict=True)
        )
        self.moments = [
            RunningMean(2 * teacher.layer(block).dim, settings.momentum)
            for block in self.teacher_blocks
            if settings.target == "standardised"
        ]
        self.modules = {
            "adapters": self.adapters,
            "token_moments": nn.ModuleList(self.moments),
        }

    def targets(self, outputs: Sequence[ViewOutputs]) -> list[list[Tensor]]:
        """Normalise the teacher's tokens: for each part, one (V B, N, D) per block."""
        targets: list[list[Tensor]] = [[] for _ in outputs]
        for index, block in enumerate(self.teacher_blocks):
            normalised = [normalise_tokens(part.blocks[block]) for part in outputs]
            if self.moments:
                moments = self.moments[index].take(moments_of(tokens) for tokens in normalised)
                normalised = [standardise(tokens, moments) for tokens in normalised]
            for part, tokens in zip(targets, normalised, strict=True):
                part.append(tokens)
        return targets

    def losses(self, student: StudentOutput, target: Sequence[Tensor]) -> Losses:
        """Return the distance of each token in each block, (V B, N) each."""
        own = [normalise_tokens(student.outputs.blocks[block]) for block in self.blocks]
        matched = zip(self.adapters, own, target, strict=True)
        return Losses(
            tuple(
                token_distance(adapter(tokens), wanted, self.distance)
                for adapter, tokens, wanted in matched
            )
        )


def moments_of(tokens: Tensor) -> tuple[Tensor, int]:
    """Return the sums of (..., D) and of its squares by channel, (2 D,), and the number of rows."""
    rows = tokens.flatten(0, -2)
    return torch.cat([rows.sum(dim=0), rows.square().sum(dim=0)]), len(rows)


TERM = Term(
    name="tokens",
    summary="Patch tokens after some blocks with the teacher's.",
    settings=TokenSettings,
    build=TokenMatching,
    weight_key="token_weight",
    weighted_by_block=True,
    logged=False,  # the log has it as 'distillation', the sum of what follows the teacher
)
