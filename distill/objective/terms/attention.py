"""Attention logits of some blocks are matched to the teacher's (MAE-Lite)."""

from pydantic import Field, model_validator
from torch import Tensor, nn

from echostill.distill.objective.outputs import Needs, StudentOutput, ViewOutputs
from echostill.distill.objective.terms.term import (
    Losses,
    Term,
    TermLoss,
    at_least_float32,
    equally_many,
    matched_blocks,
)
from echostill.platform.config import Config
from echostill.platform.errors import UsageError
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import Encoder
from echostill.platform.models.attention import attention_heads


class AttendedBlocks(Config):
    """Blocks whose attention is compared, as logits or as relations."""

    attention_layers: tuple[int, ...] | None = Field(
        None, description="Student blocks whose attention is matched; default the last."
    )
    attention_teacher_layers: tuple[int, ...] | None = Field(
        None, description="Teacher blocks it is matched to; default the last."
    )

    @model_validator(mode="after")
    def _attended_pair(self) -> "AttendedBlocks":
        equally_many(self, "attention_layers", "attention_teacher_layers")
        return self


class AttentionSettings(AttendedBlocks):
    """How much attention logits count."""

    attention_weight: float = Field(
        0.0, ge=0, description="Weight of matched attention logits (MAE-Lite)."
    )


def attended_blocks(
    student: Encoder, teacher: Encoder, settings: AttendedBlocks
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the blocks of student and teacher whose attention is compared, in pairs.

    Raises:
        UsageError: They cannot be compared; says why and what to do.
    """
    blocks, teacher_blocks = matched_blocks(
        "attention_layers",
        (student, settings.attention_layers, (student.depth,)),
        (teacher, settings.attention_teacher_layers, (teacher.depth,)),
    )
    if student.prefix_tokens != teacher.prefix_tokens:
        raise UsageError(
            f"attention of '{student.name}' is over {student.prefix_tokens} prefix tokens and "
            f"that of '{teacher.name}' over {teacher.prefix_tokens}: match tokens instead."
        )
    return blocks, teacher_blocks


def attention_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square of the difference of attention logits, over heads and keys (MAE-Lite).

    Args:
        student: (B, heads, N, N) logits before the softmax, after the 1x1 convolution that brings
            the student's heads to the teacher's.
        teacher: (B, heads, N, N) logits before the softmax.

    Returns:
        (B, N), one value for each query token.
    """
    return (student - teacher).square().mean(dim=(1, 3))


class AttentionMatching(TermLoss):
    """Distances of attention logits, one for each query token.

    A bias-free 1x1 convolution brings the student's heads to the teacher's.
    """

    def __init__(
        self, student: MaskedImageModel, teacher: Encoder, settings: AttentionSettings
    ) -> None:
        """Find the blocks.

        Raises:
            UsageError: Their attention cannot be matched; says why and what to do.
        """
        self.blocks, self.teacher_blocks = attended_blocks(student.encoder, teacher, settings)
        self.student = Needs(attention=self.blocks)
        self.teacher = Needs(attention=self.teacher_blocks)
        self.head_adapters = nn.ModuleList(
            nn.Conv2d(
                attention_heads(student.encoder, own),
                attention_heads(teacher, other),
                1,
                bias=False,
            )
            for own, other in zip(self.blocks, self.teacher_blocks, strict=True)
        )
        self.modules = {"attention": nn.ModuleDict({"head_adapters": self.head_adapters})}

    def losses(self, student: StudentOutput, target: ViewOutputs) -> Losses:
        """Return the distance of each token's logits in each block, (V B, prefix + N) each."""
        matched = zip(self.head_adapters, self.blocks, self.teacher_blocks, strict=True)
        return Losses(
            tuple(
                attention_distance(
                    at_least_float32(adapter(student.outputs.attention[own].logits())),
                    at_least_float32(target.attention[other].logits()),
                )
                for adapter, own, other in matched
            )
        )


TERM = Term(
    name="attention",
    summary="Attention logits of some blocks with the teacher's.",
    settings=AttentionSettings,
    build=AttentionMatching,
    weight_key="attention_weight",
)
