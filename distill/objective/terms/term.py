"""What a loss term is: its record in the table, and its loss for one student and teacher."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from echostill.distill.objective.outputs import Needs, StudentOutput, ViewOutputs
from echostill.platform.config import Config
from echostill.platform.errors import UsageError
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import Encoder


class Losses(NamedTuple):
    """Losses of a batch of B images in V views, before any weight.

    Attributes:
        rows: One tensor for each matched block, or a single one. Each is (B,) by image, (V B,) by
            view and image, or (V B, N) by view, image and token. The objective adds up blocks and
            views, or averages them (``reduction``), and takes the mean over tokens, which gives a
            loss per image (B,).
        parts: Further values for the log by name, scalars.
    """

    rows: tuple[Tensor, ...]
    parts: Mapping[str, Tensor] = {}


class TermLoss(ABC):
    """A term built for a student and its teacher.

    Attributes:
        student: What the term needs of the student.
        teacher: What it needs of the teacher; nothing where it follows none.
        teacher_blocks: The teacher's matched blocks, in the order of the rows of its losses.
        modules: What it trains or remembers, by the names that checkpoints have for them.
    """

    student: Needs = Needs()
    teacher: Needs = Needs()
    teacher_blocks: tuple[int, ...] = ()
    modules: Mapping[str, nn.Module] = {}

    def targets(self, outputs: Sequence[ViewOutputs]) -> Sequence[Any]:
        """Turn the teacher's outputs into what the student is compared with, without gradients.

        Args:
            outputs: What the teacher gave for each part of a worker's batch. A mean over the batch
                must be one over all parts and workers (see :class:`RunningMean`).

        Returns:
            What to follow, for each part; the outputs as they are by default.
        """
        return outputs

    @abstractmethod
    def losses(self, student: StudentOutput, target: Any) -> Losses:
        """Compute the losses of a part of a batch.

        Args:
            student: What the student made of the views.
            target: From :meth:`targets`, for the same part; None for a term without a teacher.
        """


@dataclass(frozen=True)
class Term:
    """A loss term: a row of the table that the objective sums.

    Attributes:
        name: Its name, under which the mean over the batch is logged.
        summary: What it compares, for the documentation.
        settings: The class with its keys; :class:`ObjectiveSettings` inherits them.
        build: Builds the loss from the student, its teacher and the settings.
        weight_key: The key that holds its weight, 0 to leave it out; None for a weight of 1.
        follows_teacher: Whether it compares student and teacher. Such terms are weighted by the
            teacher's consistency and by ``beta``; the others are what the student does by itself.
        weighted_by_block: Whether its blocks are those that ``consistency: each`` weighs.
        logged: Whether its mean is logged.
    """

    name: str
    summary: str
    settings: type[Config]
    build: Callable[[MaskedImageModel, Any, Any], TermLoss]
    weight_key: str | None = None
    follows_teacher: bool = True
    weighted_by_block: bool = False
    logged: bool = True

    def weight(self, settings: Config) -> float:
        """Return its weight in an objective."""
        return 1.0 if self.weight_key is None else float(getattr(settings, self.weight_key) or 0.0)


BlockChoice = tuple[Encoder, tuple[int, ...] | None, tuple[int, ...]]


def matched_blocks(
    name: str, student: BlockChoice, teacher: BlockChoice
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the blocks of student and teacher that are matched, in pairs.

    Args:
        name: Key of the student's blocks, for messages.
        student: The encoder, its blocks as configured, its blocks by default.
        teacher: The same.

    Raises:
        UsageError: A block does not exist, is named twice, or has no partner.
    """
    own, wanted = _blocks(name, *student), _blocks(f"{name} of the teacher", *teacher)
    if len(own) != len(wanted):
        raise UsageError(
            f"{len(own)} student layers cannot be matched to {len(wanted)} teacher layers: "
            "give equally many of both."
        )
    return own, wanted


def equally_many(settings: Config, own: str, other: str) -> None:
    """Refuse lists of blocks, under two keys, of which one is longer.

    Raises:
        ValueError: They differ in length, as a validator says it.
    """
    first, second = getattr(settings, own), getattr(settings, other)
    if first and second and len(first) != len(second):
        raise ValueError(f"{own} and {other} must be equally many")


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32, or as they are in float64: losses are sums over many of them."""
    return values if values.dtype == torch.float64 else values.float()


def _blocks(
    name: str, encoder: Encoder, wanted: tuple[int, ...] | None, default: tuple[int, ...]
) -> tuple[int, ...]:
    blocks = wanted or default
    for block in blocks:
        if not 1 <= block <= encoder.depth:
            raise UsageError(
                f"{name} names block {block}, but '{encoder.name}' has blocks 1 to {encoder.depth}."
            )
    if len(set(blocks)) != len(blocks):
        raise UsageError(f"{name} {blocks} names a block twice.")
    return tuple(blocks)
