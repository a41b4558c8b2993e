"""The pooled feature is matched to the teacher's, through an adapter."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from echostill.distill.objective.outputs import Needs, StudentOutput, ViewOutputs
from echostill.distill.objective.running_mean import RunningMean, RunningMeanSettings
from echostill.distill.objective.terms.term import Losses, Term, TermLoss, at_least_float32
from echostill.distill.objective.terms.tokens import moments_of, standardise
from echostill.platform.config import added
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import Encoder


class PooledSettings(RunningMeanSettings):
    """How much the pooled feature counts."""

    pooled_weight: float | None = added(
        "Weight of the matched pooled feature (as the summary loss of AM-RADIO); default 0.", ge=0
    )


class PooledMatching(TermLoss):
    """Mean square distance of pooled features, which are what a frozen encoder is used for.

    Tokens differ within an image more than images do from each other, so a student that matches
    tokens alone spends most of itself on what pooling takes away.
    """

    student, teacher = Needs(pooled=True), Needs(pooled=True)

    def __init__(
        self, student: MaskedImageModel, teacher: Encoder, settings: PooledSettings
    ) -> None:
        self.adapter = nn.Linear(student.encoder.feature_dim, teacher.feature_dim)
        self.moments = RunningMean(2 * teacher.feature_dim, settings.momentum)
        self.modules = {"pooled_adapter": self.adapter, "pooled_moments": self.moments}

    def targets(self, outputs: Sequence[ViewOutputs]) -> list[Tensor]:
        """Bring each channel of the teacher's to mean 0 and variance 1: (V B, D) for each part."""
        pooled = [_pooled(part) for part in outputs]
        moments = self.moments.take(moments_of(part) for part in pooled)
        return [standardise(part, moments) for part in pooled]

    def losses(self, student: StudentOutput, target: Tensor) -> Losses:
        """Return the distance of each view of each image, (V B,)."""
        made = self.adapter(_pooled(student.outputs))
        return Losses((functional.mse_loss(made, target, reduction="none").mean(dim=-1),))


def _pooled(outputs: ViewOutputs) -> Tensor:
    assert outputs.pooled is not None  # it was asked for
    return at_least_float32(outputs.pooled)


TERM = Term(
    name="pooled",
    summary="The pooled feature with the teacher's.",
    settings=PooledSettings,
    build=PooledMatching,
    weight_key="pooled_weight",
)
