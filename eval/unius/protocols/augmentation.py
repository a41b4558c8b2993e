"""The augmentation of the published downstream code, on whole batches.

Classification: flips left to right and upside down, a rotation [C]. Segmentation: these flips for
lesions only; rotation, gamma, zoom and contrast with a probability of a half each [C]. Images are
changed after they were resized [I], in this order [I]. Outside of the image everything is black,
and background in the mask.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from echostill.eval.unius.protocols.settings import PublishedSettings

UNIFORMS = 12  # random numbers for an image


def augment_batch(
    images: Tensor,
    targets: Tensor,
    uniforms: np.ndarray,
    settings: PublishedSettings,
    *,
    flips: bool,
) -> tuple[Tensor, Tensor]:
    """Change images, and their masks with them.

    Args:
        images: (B, 3, S, S) float in [0, 1].
        targets: (B,) labels, returned unchanged, or (B, S, S) masks.
        uniforms: (B, UNIFORMS) in [0, 1).
        settings: The ranges.
        flips: Whether images are flipped.

    Returns:
        Images (bilinear) and targets (masks nearest).
    """
    masks = targets.ndim == 3
    draw = torch.from_numpy(uniforms).to(images)
    share = settings.flip if flips else 0.0
    across = 1 - 2 * (draw[:, 0] < share).to(images)
    along = 1 - 2 * (draw[:, 1] < share).to(images)
    angle = torch.deg2rad((2 * draw[:, 2] - 1) * settings.rotation)
    scale = torch.ones_like(angle)
    shift = torch.zeros(len(images), 2).to(images)
    if masks:
        happens = draw[:, 3:7] < settings.change
        angle = torch.where(happens[:, 0], angle, 0.0)
        zoom = 1 + draw[:, 7] * (settings.zoom - 1)
        scale = torch.where(happens[:, 1], 1 / zoom, 1.0)
        shift = (1 - scale)[:, None] * (2 * draw[:, 8:10] - 1)  # the crop stays inside the image
        images = _brightness(images, draw, happens, settings)
    theta = torch.zeros(len(images), 2, 3).to(images)
    theta[:, 0, 0] = across * scale * torch.cos(angle)
    theta[:, 0, 1] = -across * scale * torch.sin(angle)
    theta[:, 1, 0] = along * scale * torch.sin(angle)
    theta[:, 1, 1] = along * scale * torch.cos(angle)
    theta[:, :, 2] = shift
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, mode="bilinear", align_corners=False)
    if masks:
        planes = targets[:, None].to(images)
        planes = functional.grid_sample(planes, grid, mode="nearest", align_corners=False)
        targets = planes[:, 0].round().to(targets.dtype)
    return images.clamp(0, 1), targets


def _brightness(
    images: Tensor, draw: Tensor, happens: Tensor, settings: PublishedSettings
) -> Tensor:
    """Raise images to a power, then stretch them about their mean."""
    low, high = settings.gamma
    power = torch.where(happens[:, 2], low + draw[:, 10] * (high - low), 1.0)
    images = images ** power[:, None, None, None]
    low, high = settings.contrast
    factor = torch.where(happens[:, 3], low + draw[:, 11] * (high - low), 1.0)
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images - mean) * factor[:, None, None, None] + mean).clamp(0, 1)
