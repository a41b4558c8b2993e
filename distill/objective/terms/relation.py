"""Relations between the tokens of a block are matched to the teacher's (TinyMIM)."""

from pydantic import Field
from torch import Tensor

from echostill.distill.objective.outputs import Needs, StudentOutput, ViewOutputs
from echostill.distill.objective.terms.attention import AttendedBlocks, attended_blocks
from echostill.distill.objective.terms.term import Losses, Term, TermLoss, at_least_float32
from echostill.platform.errors import UsageError
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import Encoder
from echostill.platform.models.attention import AttentionParts, attention_heads


class RelationSettings(AttendedBlocks):
    """How much relations count."""

    relation_weight: float = Field(
        0.0, ge=0, description="Weight of matched token relations (TinyMIM)."
    )


def relation_distance(student: AttentionParts, teacher: AttentionParts) -> Tensor:
    """Divergence of the relations between tokens (TinyMIM).

    With R_QK = softmax(q k^T / sqrt(d)) and R_VV = softmax(v v^T / sqrt(d)) of each head it is
    KL(R_QK of the teacher || of the student) + KL(R_VV of the teacher || of the student). The
    channels of the student are split into the teacher's heads.

    Returns:
        (B, N), the mean over heads for each query token; float32 at least.
    """
    own = student.with_heads(teacher.query.shape[1])
    total = _divergence(own.query, own.key, teacher.query, teacher.key)
    return total + _divergence(own.value, own.value, teacher.value, teacher.value)


class RelationMatching(TermLoss):
    """Divergences of relations, one for each query token."""

    def __init__(
        self, student: MaskedImageModel, teacher: Encoder, settings: RelationSettings
    ) -> None:
        """Find the blocks.

        Raises:
            UsageError: Their relations cannot be matched; says why and what to do.
        """
        encoder = student.encoder
        self.blocks, self.teacher_blocks = attended_blocks(encoder, teacher, settings)
        self.student = Needs(attention=self.blocks)
        self.teacher = Needs(attention=self.teacher_blocks)
        for own, other in zip(self.blocks, self.teacher_blocks, strict=True):
            attention_heads(encoder, own)  # says so where the block has no attention
            heads = attention_heads(teacher, other)
            if encoder.dim % heads:
                raise UsageError(
                    f"relations of '{encoder.name}' cannot be split into the {heads} heads of "
                    f"'{teacher.name}': its {encoder.dim} channels must be a multiple."
                )

    def losses(self, student: StudentOutput, target: ViewOutputs) -> Losses:
        """Return the divergence of each token in each block, (V B, prefix + N) each."""
        return Losses(
            tuple(
                relation_distance(student.outputs.attention[own], target.attention[other])
                for own, other in zip(self.blocks, self.teacher_blocks, strict=True)
            )
        )


def _divergence(own: Tensor, own_other: Tensor, wanted: Tensor, wanted_other: Tensor) -> Tensor:
    student, teacher = _log_relation(own, own_other), _log_relation(wanted, wanted_other)
    return (teacher.exp() * (teacher - student)).sum(dim=-1).mean(dim=1)


def _log_relation(first: Tensor, second: Tensor) -> Tensor:
    logits = first @ second.transpose(-2, -1) / first.shape[-1] ** 0.5
    return at_least_float32(logits).log_softmax(dim=-1)


TERM = Term(
    name="relation",
    summary="Relations between the tokens of some blocks with the teacher's.",
    settings=RelationSettings,
    build=RelationMatching,
    weight_key="relation_weight",
)
