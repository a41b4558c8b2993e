"""What is needed of a network's pass over the views of a batch, and what the pass gives."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from echostill.distill.objective.views import Views, resize_views
from echostill.platform.masking.masks import Masks
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import Encoder, EncoderOutput
from echostill.platform.models.attention import AttentionParts, capture_attention


@dataclass(frozen=True)
class Needs:
    """Outputs that are needed of an encoder.

    Attributes:
        pooled: The pooled feature.
        tokens: The final patch tokens.
        blocks: Blocks, counted from 1, whose patch tokens are needed; kept sorted, each once.
        attention: Blocks whose queries, keys and values are needed; likewise.
    """

    pooled: bool = False
    tokens: bool = False
    blocks: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(sorted(set(self.blocks))))
        object.__setattr__(self, "attention", tuple(sorted(set(self.attention))))

    @property
    def kinds(self) -> frozenset[str]:
        """Names of the fields in which something is needed."""
        return frozenset(field.name for field in fields(self) if getattr(self, field.name))

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.pooled or other.pooled,
            self.tokens or other.tokens,
            self.blocks + other.blocks,
            self.attention + other.attention,
        )

    def without(self, other: "Needs") -> "Needs":
        """Return what is needed here and not there."""
        return Needs(
            self.pooled and not other.pooled,
            self.tokens and not other.tokens,
            tuple(set(self.blocks) - set(other.blocks)),
            tuple(set(self.attention) - set(other.attention)),
        )

    def only(self, kinds: Iterable[str]) -> "Needs":
        """Return the needs of some kinds alone."""
        return Needs(**{kind: getattr(self, kind) for kind in kinds})

    def __str__(self) -> str:
        words = [
            "pooled feature" if self.pooled else "",
            _of("tokens after block", self.blocks),
            "final tokens" if self.tokens else "",
            _of("attention of block", self.attention),
        ]
        return ", ".join(word for word in words if word)


def all_needs(many: Iterable[Needs]) -> Needs:
    """Return everything that is needed by any."""
    together = Needs()
    for needs in many:
        together |= needs
    return together


@dataclass(frozen=True)
class TeacherRequest:
    """What an objective asks of its teacher: what it is shown, and who needs what of it."""

    views: Views
    whole_image: bool  # shown the image itself, once for all views
    by_name: Mapping[str, Needs]  # by the name of a term, or 'consistency'

    @property
    def needs(self) -> Needs:
        """Everything that is needed."""
        return all_needs(self.by_name.values())


@dataclass(frozen=True)
class ViewOutputs:
    """What an encoder makes of V views of B images, as far as it was needed.

    Patch tokens come without the prefix tokens; attention is over all tokens.
    """

    pooled: Tensor | None  # (V B, D)
    tokens: Tensor | None  # (V B, N, D)
    blocks: Mapping[int, Tensor]  # (V B, N, D) by block
    attention: Mapping[int, AttentionParts]  # by block


@dataclass(frozen=True)
class StudentOutput:
    """What the student makes of the views of a batch, and what it should have made of them."""

    prediction: Tensor  # (V B, N, p*p*3) patches
    outputs: ViewOutputs
    pixels: Tensor  # (B, 3, S, S) uncorrupted, in [0, 1]
    masks: Masks
    views: Views


@torch.no_grad()
def ask_teacher(teacher: Encoder, views: Tensor, needs: Needs) -> ViewOutputs:
    """Run the teacher over views (V B, 3, S, S), resized to its input; return what is needed."""
    views = resize_views(views, teacher.image_size)
    with _capture(teacher, needs) as attention:
        encoded = teacher(views, needs.blocks)
    return _outputs(teacher, encoded, attention, needs)


def for_each_view(outputs: ViewOutputs, number: int) -> ViewOutputs:
    """Give each of so many views what was made of the whole images: (B, ...) to (V B, ...)."""

    def repeated(values: Tensor) -> Tensor:
        return values.repeat(number, *[1] * (values.dim() - 1))

    return ViewOutputs(
        pooled=None if outputs.pooled is None else repeated(outputs.pooled),
        tokens=None if outputs.tokens is None else repeated(outputs.tokens),
        blocks={block: repeated(tokens) for block, tokens in outputs.blocks.items()},
        attention={
            block: AttentionParts(
                repeated(parts.query), repeated(parts.key), repeated(parts.value), parts.bias
            )
            for block, parts in outputs.attention.items()
        },
    )


def ask_student(
    student: MaskedImageModel, views: Tensor, needs: Needs
) -> tuple[Tensor, ViewOutputs]:
    """Run the student over views (V B, 3, S, S).

    Returns:
        Its predicted patches (V B, N, p*p*3), and what is needed of its encoder.
    """
    with _capture(student.encoder, needs) as attention:
        made = student(views, needs.blocks)
    return made.prediction, _outputs(student.encoder, made.encoded, attention, needs)


@contextmanager
def _capture(encoder: Encoder, needs: Needs) -> Iterator[Sequence[AttentionParts]]:
    if not needs.attention:
        yield ()
        return
    with capture_attention(encoder, needs.attention) as parts:
        yield parts


def _outputs(
    encoder: Encoder, encoded: EncoderOutput, attention: Sequence[AttentionParts], needs: Needs
) -> ViewOutputs:
    prefix = encoder.prefix_tokens
    blocks = zip(needs.blocks, encoded.intermediate, strict=True)
    return ViewOutputs(
        pooled=encoded.pooled if needs.pooled else None,
        tokens=encoded.tokens[:, prefix:] if needs.tokens else None,
        blocks={block: tokens[:, prefix:] for block, tokens in blocks},
        attention=dict(zip(needs.attention, attention, strict=True)),
    )


def _of(words: str, blocks: Sequence[int]) -> str:
    if not blocks:
        return ""
    return f"{words}{'s' if len(blocks) > 1 else ''} {', '.join(map(str, blocks))}"
