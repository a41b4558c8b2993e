"""Consistency-driven dynamic distillation on top of domain-separated masked image modelling.

Student and teacher see the same two corrupted views of an image, one with hidden blocks and one
with stopped frequencies. Where the teacher's features of the two views agree it is taken to be
reliable, and what it gives weighs more. TinyUSFM's formulas are not public beyond its abstract and
overview figure: what follows is the inferred default, and its choices are settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from echostill.distill.objective.consistency import RunningMean, consistency_of, consistency_weight
from echostill.distill.objective.matching import (
    AttentionMatching,
    matched_layers,
    normalise_tokens,
    standardise,
    token_distance,
)
from echostill.distill.objective.settings import ObjectiveSettings
from echostill.distill.objective.views import TeacherOutput, ask_teacher, make_views
from echostill.platform.errors import UsageError
from echostill.platform.masking.masks import Masks
from echostill.platform.masking.mim import (
    MaskedImageModel,
    Reconstruction,
    joint_losses,
    separated_losses,
    spatial_loss,
)
from echostill.platform.models import Encoder, EncoderOutput
from echostill.platform.models.attention import AttentionParts, capture_attention


@dataclass(frozen=True)
class TeacherSignal:
    """What the student follows on a part of a batch; carries no gradient."""

    targets: tuple[Tensor, ...]  # (V B, N, D) of each matched layer
    attention: tuple[AttentionParts, ...]
    weight: Tensor  # (L, B), or (L, B, N) at token level; L = 1, or the number of matched layers
    consistency: Tensor  # the same shape; 1 where one view has nothing to agree with


@dataclass(frozen=True)
class ObjectiveOutput:
    """The loss of a batch and what it is made of; all but ``loss`` is detached."""

    loss: Tensor  # scalar
    reconstruction: Tensor  # (B,) L_rec of each image
    parts: dict[str, Tensor]  # named values for the log: scalars, or (B,)
    distillation: Tensor | None = None  # (B,) unweighted L_dis; None without a teacher, as below
    weight: Tensor | None = None  # (B,), the mean over tokens and layers
    consistency: Tensor | None = None  # (B,), the mean over tokens and layers


class DistillationObjective(nn.Module):
    """Student, adapters and the running means; the teacher stands beside them.

    The teacher is neither in ``parameters()`` nor in ``state_dict()``: no gradient, no copy of it
    in each checkpoint, nothing for a data-parallel wrapper to synchronise. It follows ``.to()``.
    """

    def __init__(
        self, student: MaskedImageModel, teacher: Encoder | None, settings: ObjectiveSettings
    ) -> None:
        super().__init__()
        if not settings.distil:
            teacher = None
        elif teacher is None:
            raise UsageError(
                f"objective '{settings.preset}' follows a teacher and none is given: "
                "name one, or use the preset 'mim-only'."
            )
        self.student = student
        self.settings = settings
        self.layers: tuple[int, ...] = ()
        self.teacher_layers: tuple[int, ...] = ()
        self.attention_layers: tuple[int, ...] = ()
        self.attention_teacher_layers: tuple[int, ...] = ()
        # A tuple hides the module from torch's registration.
        self._teacher = () if teacher is None else (teacher,)
        if teacher is None:
            return
        encoder = student.encoder
        _check_grids(encoder, teacher)
        teacher.eval().requires_grad_(False)
        if settings.token_weight:
            self.layers, self.teacher_layers = matched_layers(
                "layers",
                (encoder, settings.layers, encoder.third_layers()),
                (teacher, settings.teacher_layers, teacher.third_layers()),
            )
        self.adapters = nn.ModuleList(
            nn.Linear(encoder.dim, teacher.dim, bias=False) for _ in self.layers
        )
        if settings.matches_attention:
            self.attention = AttentionMatching(encoder, teacher, settings)
            self.attention_layers = self.attention.layers
            self.attention_teacher_layers = self.attention.teacher_layers
        self.mean_feature = RunningMean(teacher.dim, settings.momentum)
        if settings.consistency == "each":
            self.layer_means = nn.ModuleList(
                RunningMean(teacher.dim, settings.momentum) for _ in self.layers
            )
        self.token_moments = nn.ModuleList(
            RunningMean(2 * teacher.dim, settings.momentum)
            for _ in self.layers
            if settings.target == "standardised"
        )

    @property
    def teacher(self) -> Encoder | None:
        """The frozen teacher, if the objective follows one."""
        return self._teacher[0] if self._teacher else None

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> "DistillationObjective":
        super()._apply(fn, recurse)
        for teacher in self._teacher:
            teacher._apply(fn)
        return self

    def views(self, pixels: Tensor, masks: Masks) -> Tensor:
        """Corrupt pixels (B, 3, S, S) into what student and teacher see, (V B, 3, S, S)."""
        return make_views(pixels, masks, self.settings)

    @torch.no_grad()
    def ask_teacher(self, views: Tensor) -> TeacherOutput:
        """Run the teacher over views and return what this objective needs of it."""
        assert self.teacher is not None
        return ask_teacher(self.teacher, views, self.teacher_layers, self.attention_teacher_layers)

    @torch.no_grad()
    def observe(self, outputs: Sequence[TeacherOutput]) -> list[TeacherSignal]:
        """Turn the teacher's output on all parts of a worker's batch into what is followed.

        Running means take in the whole batch, over all workers, and the weights see all of it, so
        that nothing depends on how the batch is cut.
        """
        assert self.teacher is not None
        prefix = self.teacher.prefix_tokens
        targets: list[list[Tensor]] = [[] for _ in outputs]
        for layer in range(len(self.layers)):
            normalised = [
                normalise_tokens(out.encoded.intermediate[layer][:, prefix:]) for out in outputs
            ]
            if self.settings.target == "standardised":
                running = self.token_moments[layer]
                assert isinstance(running, RunningMean)
                moments = running.take((_moments(n), _rows(n)) for n in normalised)
                normalised = [standardise(n, moments) for n in normalised]
            for part, target in zip(targets, normalised, strict=True):
                part.append(target)
        consistency = self._consistency(outputs, prefix)
        whole = torch.cat(consistency, dim=1)
        weight = torch.stack([consistency_weight(layer, self.settings) for layer in whole])
        sizes = [part.shape[1] for part in consistency]
        return [
            TeacherSignal(tuple(target), out.attention, own, agreed)
            for target, out, own, agreed in zip(
                targets, outputs, weight.split(sizes, dim=1), consistency, strict=True
            )
        ]

    def _consistency(self, outputs: Sequence[TeacherOutput], prefix: int) -> list[Tensor]:
        """Consistency of the two views on each part: (L, B), or (L, B, N) at token level."""
        if self.settings.views != "separated":
            pooled = [out.encoded.pooled for out in outputs]
            return [torch.ones(1, len(p), device=p.device) for p in pooled]
        token = self.settings.level == "token"
        layers: list[tuple[RunningMean, list[Tensor]]] = []
        if self.settings.consistency == "last":
            last = [
                out.encoded.tokens[:, prefix:] if token else out.encoded.pooled for out in outputs
            ]
            last = [f if f.dtype == torch.float64 else f.float() for f in last]
            layers.append((self.mean_feature, last))
        else:
            for place, mean in enumerate(self.layer_means):
                tokens = [
                    normalise_tokens(out.encoded.intermediate[place][:, prefix:]) for out in outputs
                ]
                assert isinstance(mean, RunningMean)
                layers.append((mean, tokens if token else [t.mean(dim=1) for t in tokens]))
        agreed: list[list[Tensor]] = [[] for _ in outputs]
        for running, features in layers:
            centre = None
            if self.settings.centring:
                centre = running.take((f.flatten(0, -2).sum(dim=0), _rows(f)) for f in features)
            for part, feature in zip(agreed, features, strict=True):
                spatial, frequency = feature.chunk(2)
                part.append(consistency_of(spatial, frequency, centre))
        return [torch.stack(part) for part in agreed]

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
            (signal,) = self.observe([self.ask_teacher(views)])
        attention: list[AttentionParts] = []
        if self.attention_layers:
            with capture_attention(self.student.encoder, self.attention_layers) as attention:
                student = self.student(views, self.layers)
        else:
            student = self.student(views, self.layers)
        reconstruction = self._reconstruction(student.prediction, pixels, masks)
        parts = {
            "reconstruction": reconstruction.mean,
            "reconstruction_spatial": reconstruction.spatial.mean(),
            "reconstruction_frequency": reconstruction.frequency.mean(),
        }
        if signal is None:
            return _output(reconstruction.mean, reconstruction.loss, parts)
        distances, weighted = self._follow(student.encoded, attention, signal, parts)
        weighted = self.settings.beta * weighted
        per_image = _per_image(signal.weight)
        if self.settings.combination == "balance":
            loss = (weighted + (1 - per_image) * reconstruction.loss).mean()
        else:
            loss = reconstruction.mean + weighted.mean()
        consistency = _per_image(signal.consistency)
        parts |= {
            "distillation": distances.mean(),
            "weight": per_image,
            "consistency": consistency,
            "reconstruction_error": reconstruction.loss,
        }
        return _output(
            loss,
            reconstruction.loss,
            parts,
            distillation=distances.detach(),
            weight=per_image,
            consistency=consistency,
        )

    def _reconstruction(self, prediction: Tensor, pixels: Tensor, masks: Masks) -> Reconstruction:
        patch, settings = self.student.patch_size, self.settings.reconstruction
        if self.settings.views == "spatial":
            return spatial_loss(prediction, pixels, masks, patch, settings)
        if self.settings.views == "joint":
            return joint_losses(prediction, pixels, masks, patch, settings)
        spatial, frequency = prediction.chunk(2)
        return separated_losses(spatial, frequency, pixels, masks, patch, settings)

    def _follow(
        self,
        student: EncoderOutput,
        attention: Sequence[AttentionParts],
        signal: TeacherSignal,
        parts: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Distances to the teacher: unweighted and weighted, (B,) each, summed over views."""
        settings = self.settings
        plain: list[Tensor] = []
        weighted: list[Tensor] = []
        # At sample level (L, B, 1) weighs all tokens of an image alike.
        weight = signal.weight if signal.weight.ndim == 3 else signal.weight[:, :, None]
        if self.layers:
            tokens = self._token_distances(student, signal)
            distances = self._add_views(sum(tokens[1:], tokens[0]))
            if len(weight) == 1:
                matched = weight[0] * distances
            else:
                matched = (weight * torch.stack([self._add_views(t) for t in tokens])).sum(dim=0)
            plain.append(settings.token_weight * distances.mean(dim=1))
            weighted.append(settings.token_weight * matched.mean(dim=1))
        mean_weight = weight.mean(dim=0)
        matches = self.attention.distances(attention, signal.attention) if attention else []
        for name, share, rows in matches:
            rows = self._add_views(rows)
            # Prefix tokens have no weight of their own: they take that of their image.
            prefix = rows.shape[1] - mean_weight.shape[1] if signal.weight.ndim == 3 else 0
            own = mean_weight
            if prefix:
                own = torch.cat([own.mean(dim=1, keepdim=True).expand(-1, prefix), own], dim=1)
            plain.append(share * rows.mean(dim=1))
            weighted.append(share * (own * rows).mean(dim=1))
            parts[name] = rows.mean()
        return sum(plain[1:], plain[0]), sum(weighted[1:], weighted[0])

    def _token_distances(self, student: EncoderOutput, signal: TeacherSignal) -> list[Tensor]:
        """Distance of each patch token in each layer: (V B, N) each.

        The student's tokens are normalised before the adapter, as MAE-Lite does: the raw residual
        stream grows with depth and training, and the adapters would have to follow.
        """
        prefix = self.student.encoder.prefix_tokens
        pairs = zip(self.adapters, student.intermediate, signal.targets, strict=True)
        return [
            token_distance(
                adapter(normalise_tokens(tokens[:, prefix:])), target, self.settings.distance
            )
            for adapter, tokens, target in pairs
        ]

    def _add_views(self, rows: Tensor) -> Tensor:
        if self.settings.views != "separated":
            return rows
        spatial, frequency = rows.chunk(2)
        return spatial + frequency


def _moments(normalised: Tensor) -> Tensor:
    rows = normalised.flatten(0, -2)
    return torch.cat([rows.sum(dim=0), rows.square().sum(dim=0)])


def _rows(features: Tensor) -> int:
    return features.shape[:-1].numel()


def _per_image(values: Tensor) -> Tensor:
    """Bring (L, B) or (L, B, N) to (B,)."""
    whole = values[0] if len(values) == 1 else values.mean(dim=0)
    return whole.mean(dim=1) if whole.ndim == 2 else whole


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


def _check_grids(student: Encoder, teacher: Encoder) -> None:
    if student.image_size != teacher.image_size or student.patch_size != teacher.patch_size:
        raise UsageError(
            f"student '{student.name}' cuts {student.image_size} pixels into patches of "
            f"{student.patch_size}, teacher '{teacher.name}' {teacher.image_size} into patches of "
            f"{teacher.patch_size}: tokens are matched one to one, so choose a student with the "
            "teacher's image size and patch size."
        )
