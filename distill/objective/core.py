"""Consistency-driven dynamic distillation on top of domain-separated masked image modelling.

Student and teacher see the same two corrupted views of an image, one with hidden blocks and one
with stopped frequencies (or the teacher the image itself: ``teacher_sees``). Where the teacher's
features of the two views agree, the teacher is taken to be reliable, and what it gives weighs more.
TinyUSFM's formulas are not public beyond its abstract and overview figure: what follows is the
inferred default, and its choices are settings.

The loss is a table of terms (``terms/``): what the student does by itself, and what it is to match
of its teacher. Each is built once, says what it needs of both networks, and gives its losses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from echostill.distill.objective.consistency import Consistency, consistency_weight
from echostill.distill.objective.grids import check_grids, on_grid
from echostill.distill.objective.outputs import (
    Needs,
    StudentOutput,
    TeacherRequest,
    ViewOutputs,
    all_needs,
    ask_student,
    ask_teacher,
    for_each_view,
)
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.objective.terms.term import Term, TermLoss
from echostill.distill.objective.views import make_views
from echostill.distill.objective.weighing import (
    add_up,
    averaged,
    by_image,
    mean_by_image,
    weigh,
)
from echostill.platform.errors import UsageError
from echostill.platform.masking.masks import Masks
from echostill.platform.masking.mim import MaskedImageModel
from echostill.platform.models import Encoder

CONSISTENCY = "consistency"


@dataclass(frozen=True)
class TeacherSignal:
    """What the student follows on a part of a batch; carries no gradient."""

    targets: Mapping[str, Any]  # by the name of a term: what it compares the student with
    weight: Tensor  # (L, B), or (L, B, N) at token level; L = 1, or the number of matched blocks
    consistency: Tensor  # the same shape; 1 where there is a single view


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss of a batch and what it is made of; all but ``loss`` is detached."""

    loss: Tensor  # scalar
    reconstruction: Tensor  # (B,) the terms without a teacher
    parts: dict[str, Tensor]  # named values for the log: scalars, or (B,)
    distillation: Tensor | None = None  # (B,) the terms that follow the teacher, unweighted
    weight: Tensor | None = None  # (B,), the mean over tokens and blocks
    consistency: Tensor | None = None  # (B,), the mean over tokens and blocks


class DistillationObjective(nn.Module):
    """Student, adapters and running means; the teacher stands beside them.

    The teacher is neither in ``parameters()`` nor in ``state_dict()``: it gets no gradient, is not
    copied into checkpoints, and a data-parallel wrapper does not synchronise it. It follows
    ``.to()``.
    """

    def __init__(
        self, student: MaskedImageModel, teacher: Encoder | None, settings: ObjectiveSettings
    ) -> None:
        """Build the terms of the settings.

        Raises:
            UsageError: A teacher is missing, or a term does not fit student and teacher.
        """
        super().__init__()
        if not settings.distil:
            teacher = None
        elif teacher is None:
            raise UsageError(
                f"objective '{settings.preset}' follows a teacher and none is given: "
                "name one, or use the preset 'mim-only'."
            )
        else:
            teacher.eval().requires_grad_(False)
        self.student = student
        self.settings = settings
        self.grid = student.encoder.patch_grid()  # on which tokens are matched
        # A tuple hides the module from torch's registration.
        self._teacher = () if teacher is None else (teacher,)
        self._terms: list[tuple[Term, TermLoss]] = [
            (term, term.build(student, teacher, settings)) for term in settings.terms
        ]
        self._consistency: Consistency | None = None
        if teacher is not None:
            weighted = [loss for term, loss in self._terms if term.weighted_by_block]
            blocks = weighted[0].teacher_blocks if weighted else ()
            self._consistency = Consistency(teacher, settings, settings.views, blocks)
            check_grids(student.encoder, teacher, self.request.needs)
        # Checkpoints name what a term trains as a part of the objective.
        for owner in (*self.terms.values(), self._consistency):
            for name, module in owner.modules.items() if owner else ():
                self.add_module(name, module)

    @property
    def teacher(self) -> Encoder | None:
        """The frozen teacher, if the objective follows one."""
        return self._teacher[0] if self._teacher else None

    @property
    def terms(self) -> dict[str, TermLoss]:
        """The terms of this objective by name, in the order of the table."""
        return {term.name: loss for term, loss in self._terms}

    @property
    def request(self) -> TeacherRequest:
        """What the objective asks of its teacher."""
        needs = {term.name: loss.teacher for term, loss in self._terms if term.follows_teacher}
        if self._consistency is not None:
            needs[CONSISTENCY] = self._consistency.needs
        return TeacherRequest(self.settings.views, self.settings.whole_image, needs)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "DistillationObjective":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        for teacher in self._teacher:
            teacher._apply(fn)  # type: ignore[no-untyped-call]
        return self

    def views(self, pixels: Tensor, masks: Masks) -> Tensor:
        """Corrupt pixels (B, 3, S, S) into what student and teacher see, (V B, 3, S, S)."""
        return make_views(pixels, masks, self.settings.views)

    @torch.no_grad()
    def ask_teacher(self, pixels: Tensor, views: Tensor, needs: Needs | None = None) -> ViewOutputs:
        """Run the teacher over views, or over what they were made from; return what is needed.

        Args:
            pixels: (B, 3, S, S) uncorrupted, in [0, 1].
            views: (V B, 3, S, S) from :meth:`views`.
            needs: What is needed, of this objective and of others; by default of this one.
        """
        assert self.teacher is not None
        needs = needs or self.request.needs
        if not self.settings.whole_image:
            return ask_teacher(self.teacher, views, needs)
        outputs = ask_teacher(self.teacher, pixels, needs)
        return for_each_view(outputs, len(views) // len(pixels))

    @torch.no_grad()
    def observe(self, outputs: Sequence[ViewOutputs]) -> list[TeacherSignal]:
        """Turn the teacher's outputs on all parts of a worker's batch into what is followed.

        Running means take in the whole batch, over all workers, and the weights see all of it, so
        that nothing depends on how the batch is cut.

        Args:
            outputs: For each part what :attr:`request` asks for; may hold more.
        """
        assert self._consistency is not None
        assert self.teacher is not None
        outputs = [on_grid(part, self.teacher, self.grid) for part in outputs]
        targets = {
            term.name: loss.targets(outputs) for term, loss in self._terms if term.follows_teacher
        }
        consistency = self._consistency.of(outputs)
        whole = torch.cat(consistency, dim=1)
        weight = torch.stack([consistency_weight(block, self.settings) for block in whole])
        sizes = [part.shape[1] for part in consistency]
        return [
            TeacherSignal({name: each[part] for name, each in targets.items()}, own, agreed)
            for part, (own, agreed) in enumerate(
                zip(torch.split(weight, sizes, dim=1), consistency, strict=True)
            )
        ]

    def forward(
        self, pixels: Tensor, views: Tensor, masks: Masks, signal: TeacherSignal | None = None
    ) -> ObjectiveOutput:
        """Compute the loss of a batch, or of a part of one.

        Args:
            pixels: (B, 3, S, S) uncorrupted, in [0, 1].
            views: (V B, 3, S, S) from :meth:`views`.
            masks: Masks of the batch.
            signal: From :meth:`observe`; None asks the teacher now, for a batch in one piece.
        """
        if self.teacher is not None and signal is None:
            (signal,) = self.observe([self.ask_teacher(pixels, views)])
        needs = all_needs(loss.student for loss in self.terms.values())
        prediction, outputs = ask_student(self.student, views, needs)
        outputs = on_grid(outputs, self.student.encoder, self.grid)
        student = StudentOutput(prediction, outputs, pixels, masks, self.settings.views)
        parts: dict[str, Tensor] = {}
        alone: list[Tensor] = []
        followed: list[Tensor] = []
        weighted: list[Tensor] = []
        for term, loss in self._terms:
            target = signal.targets[term.name] if signal and term.follows_teacher else None
            rows, logged = loss.losses(student, target)
            if self.settings.reduction == "mean":
                rows = averaged(rows, len(pixels))
            whole, share = add_up(rows, len(pixels)), term.weight(self.settings)
            if signal and term.follows_teacher:
                own = weigh(rows, whole, signal.weight, by_block=term.weighted_by_block)
                followed.append(share * by_image(whole))
                weighted.append(share * by_image(own))
            else:
                alone.append(share * by_image(whole))
            parts |= {term.name: whole.mean()} if term.logged else {}
            parts |= logged
        reconstruction = sum(alone[1:], alone[0])
        if signal is None:
            return _output(reconstruction.mean(), reconstruction, parts)
        distilled = self.settings.beta * sum(weighted[1:], weighted[0])
        weight, consistency = mean_by_image(signal.weight), mean_by_image(signal.consistency)
        if self.settings.combination == "balance":
            total = (distilled + (1 - weight) * reconstruction).mean()
        else:
            total = reconstruction.mean() + distilled.mean()
        distillation = sum(followed[1:], followed[0])
        parts |= {
            "distillation": distillation.mean(),
            "weight": weight,
            "consistency": consistency,
            "reconstruction_error": reconstruction,
        }
        return _output(
            total,
            reconstruction,
            parts,
            distillation=distillation.detach(),
            weight=weight,
            consistency=consistency,
        )


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
