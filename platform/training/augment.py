"""Augmentation whose every choice is replayable: crops and flips from (seed, epoch, image).

Crop boxes follow the usual random resized crop (area uniform in ``scale``, aspect ratio
log-uniform in 3/4..4/3); the whole batch is resampled in one call.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from echostill.platform.config import Config
from echostill.platform.seeding import unit_uniforms

UNIFORMS = 5


class AugmentSettings(Config):
    """Random resized crop and horizontal flip."""

    crop_scale: tuple[float, float] = (0.4, 1.0)
    crop_ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5


def crop_boxes(uniforms: np.ndarray, settings: AugmentSettings) -> np.ndarray:
    """Turn uniforms (B, 5) into boxes (B, 5): left, top, width, height in 0..1, and flip (0/1)."""
    low, high = settings.crop_scale
    area = low + (high - low) * uniforms[:, 0]
    log_low, log_high = (math.log(value) for value in settings.crop_ratio)
    ratio = np.exp(log_low + (log_high - log_low) * uniforms[:, 1])
    width = np.minimum(np.sqrt(area * ratio), 1.0)
    height = np.minimum(np.sqrt(area / ratio), 1.0)
    left = uniforms[:, 2] * (1 - width)
    top = uniforms[:, 3] * (1 - height)
    flip = (uniforms[:, 4] < settings.flip).astype(np.float64)
    return np.stack([left, top, width, height, flip], axis=1)


def resample(images: Tensor, boxes: np.ndarray, size: int) -> Tensor:
    """Cut and resize boxes out of images.

    Args:
        images: (B, C, H, W) float in [0, 1].
        boxes: (B, 5) from :func:`crop_boxes`.
        size: Side of the output in pixels.

    Returns:
        (B, C, size, size) float in [0, 1].
    """
    box = torch.from_numpy(boxes).to(images)
    left, top, width, height, flip = box.unbind(1)
    direction = 1 - 2 * flip
    theta = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    theta[:, 0, 0] = width * direction
    theta[:, 1, 1] = height
    theta[:, 0, 2] = 2 * left + width - 1
    theta[:, 1, 2] = 2 * top + height - 1
    grid = functional.affine_grid(
        theta, [len(images), images.shape[1], size, size], align_corners=False
    )
    out = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return out.clamp_(0, 1)


def augment(
    images: Tensor,
    image_ids: Sequence[str],
    epochs: np.ndarray,
    size: int,
    seed: int,
    settings: AugmentSettings,
) -> Tensor:
    """Crop and flip a batch; each image's crop depends on (seed, epoch, image id) alone."""
    uniforms = uniforms_per_image(seed, epochs, image_ids, "crop", UNIFORMS)
    return resample(images, crop_boxes(uniforms, settings), size)


def uniforms_per_image(
    seed: int, epochs: np.ndarray, image_ids: Sequence[str], view: str, count: int
) -> np.ndarray:
    """As :func:`unit_uniforms`, for a batch whose images may belong to different epochs."""
    out = np.empty((len(image_ids), count))
    for row, (epoch, image_id) in enumerate(zip(epochs, image_ids, strict=True)):
        out[row] = unit_uniforms(seed, int(epoch), [image_id], view, count)[0]
    return out
