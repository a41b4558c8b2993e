"""The corrupted views of a batch, which the student sees, and as a rule the teacher too."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from echostill.platform.masking.masks import Masks, apply_both, apply_frequency, apply_spatial

Views = Literal["separated", "spatial", "joint"]
TeacherSees = Literal["views", "image"]


def make_views(pixels: Tensor, masks: Masks, views: Views) -> Tensor:
    """Corrupt images into their views.

    Args:
        pixels: (B, 3, S, S) in [0, 1].
        masks: Masks of the batch.
        views: ``separated`` gives two views, one with hidden blocks and one with stopped
            frequencies; ``spatial`` the first alone; ``joint`` one view with both masks.

    Returns:
        (V B, 3, S, S), the first view of all images before the second.
    """
    if views == "joint":
        return apply_both(pixels, masks)
    spatial = apply_spatial(pixels, masks.spatial)
    if views == "spatial":
        return spatial
    return torch.cat([spatial, apply_frequency(pixels, masks.frequency)])


def resize_views(views: Tensor, image_size: int) -> Tensor:
    """Bring corrupted views (V B, 3, S, S) to another input side, bilinear and antialiased."""
    if views.shape[-1] == image_size:
        return views
    return functional.interpolate(
        views, (image_size, image_size), mode="bilinear", align_corners=False, antialias=True
    )
