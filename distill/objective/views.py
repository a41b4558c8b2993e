"""The corrupted views of a batch, and what the teacher makes of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from echostill.distill.objective.settings import ObjectiveSettings
from echostill.platform.masking.masks import Masks, apply_both, apply_frequency, apply_spatial
from echostill.platform.models import Encoder, EncoderOutput
from echostill.platform.models.attention import AttentionParts, capture_attention


@dataclass(frozen=True)
class TeacherOutput:
    """What the teacher makes of the views of a batch."""

    encoded: EncoderOutput
    attention: tuple[AttentionParts, ...]

    def choose(self, layers: Sequence[int], attention: Sequence[int]) -> "TeacherOutput":
        """Return only some of the intermediate tokens and attention parts, by their places."""
        tokens = tuple(self.encoded.intermediate[place] for place in layers)
        parts = tuple(self.attention[place] for place in attention)
        return TeacherOutput(self.encoded._replace(intermediate=tokens), parts)


def make_views(pixels: Tensor, masks: Masks, settings: ObjectiveSettings) -> Tensor:
    """Corrupt pixels (B, 3, S, S) into the views that the settings ask for, (V B, 3, S, S)."""
    if settings.views == "joint":
        return apply_both(pixels, masks)
    spatial = apply_spatial(pixels, masks.spatial)
    if settings.views == "spatial":
        return spatial
    return torch.cat([spatial, apply_frequency(pixels, masks.frequency)])


@torch.no_grad()
def ask_teacher(
    teacher: Encoder, views: Tensor, layers: Sequence[int], attention_layers: Sequence[int]
) -> TeacherOutput:
    """Run the teacher over views (V B, 3, S, S), keeping tokens and attention of some blocks."""
    if not attention_layers:
        return TeacherOutput(teacher(views, layers), ())
    with capture_attention(teacher, attention_layers) as attention:
        encoded = teacher(views, layers)
    return TeacherOutput(encoded, tuple(attention))
