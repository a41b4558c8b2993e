"""What the student can follow: the teacher's tokens, attention logits and relations.

Each distance is given per token, so that it can be weighted by image or by token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.errors import UsageError
from echostill.platform.models import Encoder
from echostill.platform.models.attention import AttentionParts, attention_heads


def normalise_tokens(tokens: Tensor) -> Tensor:
    """LayerNorm without affine parameters, in float32 at least."""
    exact = tokens if tokens.dtype == torch.float64 else tokens.float()
    return functional.layer_norm(exact, exact.shape[-1:])


def standardise(normalised: Tensor, moments: Tensor) -> Tensor:
    """Bring each channel of normalised tokens to mean 0 and variance 1 over the data.

    63 to 69 % of the power of the quickstart teacher's normalised tokens is one constant vector
    (measured on 180 benchmark images), which an adapter fits at once and from which nothing is
    learnt.

    Args:
        normalised: (..., D) tokens.
        moments: (2 D,) mean and mean square by channel.
    """
    mean, square = moments.chunk(2)
    return (normalised - mean) / (square - mean.square()).clamp_min(1e-4).sqrt()


def token_distance(student: Tensor, target: Tensor, distance: str = "mse") -> Tensor:
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
    return (student - target).square().mean(dim=-1)


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


Layers = tuple[Encoder, tuple[int, ...] | None, tuple[int, ...]]


def matched_layers(
    name: str, student: Layers, teacher: Layers
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the blocks of student and teacher that are matched, in pairs.

    Args:
        name: Key of the student's blocks, for messages.
        student: The encoder, its blocks as configured, its blocks by default.
        teacher: The same.

    Raises:
        UsageError: A block does not exist, is named twice, or has no partner.
    """
    own, wanted = _layers(name, *student), _layers(f"{name} of the teacher", *teacher)
    if len(own) != len(wanted):
        raise UsageError(
            f"{len(own)} student layers cannot be matched to {len(wanted)} teacher layers: "
            "give equally many of both."
        )
    return own, wanted


def _layers(
    name: str, encoder: Encoder, wanted: tuple[int, ...] | None, default: tuple[int, ...]
) -> tuple[int, ...]:
    layers = wanted or default
    for layer in layers:
        if not 1 <= layer <= encoder.depth:
            raise UsageError(
                f"{name} names block {layer}, but '{encoder.name}' has blocks 1 to {encoder.depth}."
            )
    if len(set(layers)) != len(layers):
        raise UsageError(f"{name} {layers} names a block twice.")
    return tuple(layers)


class AttentionMatching(nn.Module):
    """Attention logits and relations of some blocks, matched to the teacher's.

    A bias-free 1x1 convolution brings the student's heads to the teacher's for the logits.
    """

    def __init__(self, student: Encoder, teacher: Encoder, settings: ObjectiveSettings) -> None:
        """Find the blocks and see that they can be matched.

        Raises:
            UsageError: They cannot; says why and what to do.
        """
        super().__init__()
        self.logit_weight, self.relation_weight = (
            settings.attention_weight,
            settings.relation_weight,
        )
        self.layers, self.teacher_layers = matched_layers(
            "attention_layers",
            (student, settings.attention_layers, (student.depth,)),
            (teacher, settings.attention_teacher_layers, (teacher.depth,)),
        )
        if student.prefix_tokens != teacher.prefix_tokens:
            raise UsageError(
                f"attention of '{student.name}' is over {student.prefix_tokens} prefix tokens and "
                f"that of '{teacher.name}' over {teacher.prefix_tokens}: match tokens instead."
            )
        self.head_adapters = nn.ModuleList()
        for own, other in zip(self.layers, self.teacher_layers, strict=True):
            heads, wanted = attention_heads(student, own), attention_heads(teacher, other)
            if self.logit_weight:
                self.head_adapters.append(nn.Conv2d(heads, wanted, 1, bias=False))
            if self.relation_weight and student.dim % wanted:
                raise UsageError(
                    f"relations of '{student.name}' cannot be split into the {wanted} heads of "
                    f"'{teacher.name}': its {student.dim} channels must be a multiple."
                )

    def distances(
        self, student: Sequence[AttentionParts], teacher: Sequence[AttentionParts]
    ) -> list[tuple[str, float, Tensor]]:
        """Return name, weight and rows (V B, N) of what is matched, summed over blocks."""
        found = []
        if self.logit_weight:
            triples = zip(self.head_adapters, student, teacher, strict=True)
            rows = [
                attention_distance(_exact(adapter(own.logits())), _exact(other.logits()))
                for adapter, own, other in triples
            ]
            found.append(("attention", self.logit_weight, torch.stack(rows).sum(dim=0)))
        if self.relation_weight:
            rows = [relation_distance(*pair) for pair in zip(student, teacher, strict=True)]
            found.append(("relation", self.relation_weight, torch.stack(rows).sum(dim=0)))
        return found


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _divergence(own: Tensor, own_other: Tensor, wanted: Tensor, wanted_other: Tensor) -> Tensor:
    student, teacher = _log_relation(own, own_other), _log_relation(wanted, wanted_other)
    return (teacher.exp() * (teacher - student)).sum(dim=-1).mean(dim=1)


def _log_relation(first: Tensor, second: Tensor) -> Tensor:
    logits = first @ second.transpose(-2, -1) / first.shape[-1] ** 0.5
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)
