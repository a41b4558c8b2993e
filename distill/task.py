"""Distillation as a training task: one student, or several that share the teacher's work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echostill.distill.cache.teacher_cache import CachedTeacher
from echostill.distill.objective.consistency import weight_statistics
from echostill.distill.objective.core import DistillationObjective, TeacherSignal
from echostill.distill.objective.outputs import ViewOutputs, all_needs
from echostill.distill.objective.views import make_views
from echostill.platform.masking.masks import MaskChoice, Masks, MaskSettings, choose_masks
from echostill.platform.models import Encoder
from echostill.platform.training.batches import TrainingBatch
from echostill.platform.training.loop import Totals, TrainingTask


@dataclass(frozen=True)
class PreparedViews:
    """The views of a part of a batch, and what each student follows on it."""

    masks: Masks
    views: Tensor  # (V B, 3, S, S)
    signals: tuple[TeacherSignal | None, ...]


class DistillationTask(TrainingTask):
    """One or more objectives fed with the same views of each image.

    Students that see the same views share one pass of the teacher. Each keeps its own weights,
    losses and gradient clipping, so it ends as if it had been trained alone.
    """

    def __init__(
        self, objectives: Mapping[str, DistillationObjective], masks: MaskSettings, seed: int
    ) -> None:
        """Put the task together.

        Args:
            objectives: By the name of the run. The teacher is one module, or none.
            masks: Masks scaled to the students' input.
            seed: Seed of the masks.
        """
        super().__init__()
        self.names = tuple(objectives)
        self.objectives = nn.ModuleList(objectives.values())
        self.masks, self.seed = masks, seed
        first = self.objective
        self.image_size = first.student.encoder.image_size
        self.views = first.settings.views
        teacher = first.teacher
        # A tuple hides the module from torch's registration.
        self._teacher: tuple[Encoder | CachedTeacher, ...] = () if teacher is None else (teacher,)
        self.needs = all_needs(each.request.needs for each in self.every)

    @property
    def objective(self) -> DistillationObjective:
        """The first objective, which is the only one of a student that trains alone."""
        return self.each(0)

    @property
    def every(self) -> list[DistillationObjective]:
        """All objectives, in the order of their names."""
        return [self.each(index) for index in range(len(self.names))]

    def each(self, index: int) -> DistillationObjective:
        """Return an objective by its index."""
        found = self.objectives[index]
        assert isinstance(found, DistillationObjective)
        return found

    def draw(self, batch: TrainingBatch) -> MaskChoice:
        """Choose the masks of a batch."""
        return choose_masks(self.masks, self.seed, batch.epochs, batch.image_ids)

    @torch.no_grad()
    def prepare(self, batches: Sequence[TrainingBatch]) -> list[PreparedViews]:
        """Corrupt the images and ask the teacher, for all parts of a batch."""
        masks = [
            (batch.draws or self.draw(batch)).masks(self.masks, batch.pixels.device)
            for batch in batches
        ]
        views = [
            make_views(batch.pixels, own, self.views)
            for batch, own in zip(batches, masks, strict=True)
        ]
        signals: list[list[TeacherSignal | None]] = [[] for _ in batches]
        outputs = [
            self._ask_teacher(batch, own)
            for batch, own in zip(batches, views, strict=True)
            if self._teacher
        ]
        for each in self.every:
            followed = each.observe(outputs) if outputs else [None] * len(batches)
            for part, signal in zip(signals, followed, strict=True):
                part.append(signal)
        return [
            PreparedViews(*part) for part in zip(masks, views, map(tuple, signals), strict=True)
        ]

    def _ask_teacher(self, batch: TrainingBatch, views: Tensor) -> ViewOutputs:
        """Run the teacher over the views, or look up what it made of them."""
        (teacher,) = self._teacher
        if isinstance(teacher, CachedTeacher):
            return teacher.look_up(batch.image_ids, batch.epochs, self.needs, views.device)
        return self.objective.ask_teacher(batch.pixels, views, self.needs)

    def forward(
        self, batch: TrainingBatch, prepared: PreparedViews | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch: the sum over the students, whose gradients do not meet."""
        if prepared is None:
            (prepared,) = self.prepare([batch])
        losses: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        for index, signal in enumerate(prepared.signals):
            output = self.each(index)(batch.pixels, prepared.views, prepared.masks, signal)
            losses.append(output.loss)
            prefix = self._prefix(index)
            parts |= {prefix + name: value for name, value in output.parts.items()}
        return sum(losses[1:], losses[0]), parts

    def summarise(
        self, images: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], totals: Totals
    ) -> dict[str, float]:
        """Describe how each student's consistency weight acts."""
        row: dict[str, float] = {}
        for index in range(len(self.names)):
            prefix = self._prefix(index)
            own = {
                name.removeprefix(prefix): value
                for name, value in images.items()
                if name.startswith(prefix)
            }
            row |= weight_statistics(own, groups, totals, prefix)
        return row

    def compiled(self) -> list[nn.Module]:
        """Return the teacher and the students' models."""
        live = [each for each in self._teacher if not isinstance(each, CachedTeacher)]
        return [*live, *(each.student for each in self.every)]

    def members(self) -> dict[str, nn.Module]:
        """Name the students."""
        return {self._prefix(index): each for index, each in enumerate(self.every)}

    def _prefix(self, index: int) -> str:
        return "" if len(self.names) == 1 else f"{self.names[index]}/"
