"""Distillation as a training task: one student, or several that share the teacher's work."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echostill.distill.cache.teacher_cache import CachedTeacher
from echostill.distill.objective.consistency import weight_statistics
from echostill.distill.objective.core import DistillationObjective, TeacherSignal
from echostill.distill.objective.views import TeacherOutput, ask_teacher, make_views
from echostill.platform.masking.masks import MaskChoice, Masks, MaskSettings, choose_masks
from echostill.platform.models import Encoder
from echostill.platform.training.batches import TrainingBatch
from echostill.platform.training.loop import Totals, TrainingTask


@dataclass(frozen=True)
class PreparedBatch:
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
        self._settings = first.settings
        teacher = first.teacher
        # A tuple hides the module from torch's registration.
        self._teacher: tuple[Encoder | CachedTeacher, ...] = () if teacher is None else (teacher,)
        every = [self.each(place) for place in range(len(self.names))]
        self.layers = _union(each.teacher_layers for each in every)
        self.attention_layers = _union(each.attention_teacher_layers for each in every)

    @property
    def objective(self) -> DistillationObjective:
        """The first objective, which is the only one of a student that trains alone."""
        return self.each(0)

    def each(self, place: int) -> DistillationObjective:
        """Return an objective by its place."""
        found = self.objectives[place]
        assert isinstance(found, DistillationObjective)
        return found

    def draw(self, batch: TrainingBatch) -> MaskChoice:
        """Choose the masks of a batch."""
        return choose_masks(self.masks, self.seed, batch.epochs, batch.image_ids)

    @torch.no_grad()
    def prepare(self, batches: Sequence[TrainingBatch]) -> list[PreparedBatch]:
        """Corrupt the images and ask the teacher, for all parts of a batch."""
        masks = [
            (batch.draws or self.draw(batch)).masks(self.masks, batch.pixels.device)
            for batch in batches
        ]
        views = [
            make_views(batch.pixels, own, self._settings)
            for batch, own in zip(batches, masks, strict=True)
        ]
        signals: list[list[TeacherSignal | None]] = [[] for _ in batches]
        if self._teacher:
            outputs = [
                self._ask_teacher(batch, own) for batch, own in zip(batches, views, strict=True)
            ]
            for place in range(len(self.names)):
                each = self.each(place)
                layers = [self.layers.index(layer) for layer in each.teacher_layers]
                attention = [
                    self.attention_layers.index(layer) for layer in each.attention_teacher_layers
                ]
                chosen = [output.choose(layers, attention) for output in outputs]
                for part, signal in zip(signals, each.observe(chosen), strict=True):
                    part.append(signal)
        else:
            signals = [[None] * len(self.names) for _ in batches]
        return [
            PreparedBatch(*part) for part in zip(masks, views, map(tuple, signals), strict=True)
        ]

    def _ask_teacher(self, batch: TrainingBatch, views: Tensor) -> TeacherOutput:
        """Run the teacher over the views, or look up what it made of them."""
        (teacher,) = self._teacher
        if isinstance(teacher, CachedTeacher):
            found = teacher.look_up(batch.image_ids, batch.epochs, self.layers, views.device)
            return TeacherOutput(found, ())
        return ask_teacher(teacher, views, self.layers, self.attention_layers)

    def forward(
        self, batch: TrainingBatch, prepared: PreparedBatch | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch: the sum over the students, whose gradients do not meet."""
        if prepared is None:
            (prepared,) = self.prepare([batch])
        losses: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        for place, signal in enumerate(prepared.signals):
            output = self.each(place)(batch.pixels, prepared.views, prepared.masks, signal)
            losses.append(output.loss)
            prefix = self._prefix(place)
            parts |= {prefix + name: value for name, value in output.parts.items()}
        return sum(losses[1:], losses[0]), parts

    def summarise(
        self, images: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], totals: Totals
    ) -> dict[str, float]:
        """Say how each student's consistency weight acts."""
        row: dict[str, float] = {}
        for place in range(len(self.names)):
            prefix = self._prefix(place)
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
        return [*live, *(self.each(place).student for place in range(len(self.names)))]

    def members(self) -> dict[str, nn.Module]:
        """Name the students."""
        return {self._prefix(place): self.each(place) for place in range(len(self.names))}

    def _prefix(self, place: int) -> str:
        return "" if len(self.names) == 1 else f"{self.names[place]}/"


def _union(layers: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({layer for each in layers for layer in each}))
