"""Augmentation whose every choice is replayable: crops and flips from (seed, epoch, image).

Crop boxes follow the usual random resized crop (area uniform in ``scale``, aspect ratio
log-uniform in 3/4..4/3); the whole batch is resampled in one call. There are two ways to the same
pixels: on CPUs :func:`augment` resamples floats, beside GPUs :func:`crop_positions` are computed on
the CPU and :func:`cut_out` resamples the staged bytes where they are needed.
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
    theta = _affine(torch.from_numpy(boxes).to(images))
    grid = functional.affine_grid(
        theta, [len(images), images.shape[1], size, size], align_corners=False
    )
    out = functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return out.clamp_(0, 1)


def _affine(boxes: Tensor) -> Tensor:
    """Return the affine map (B, 2, 3) from a crop to its image, both on [-1, 1]."""
    left, top, width, height, flip = boxes.unbind(1)
    direction = 1 - 2 * flip
    theta = boxes.new_zeros(len(boxes), 2, 3)
    theta[:, 0, 0] = width * direction
    theta[:, 1, 1] = height
    theta[:, 0, 2] = 2 * left + width - 1
    theta[:, 1, 2] = 2 * top + height - 1
    return theta


def crop_positions(boxes: np.ndarray, side: int, size: int) -> Tensor:
    """Return where the columns and rows of each crop lie in its image, in pixels.

    A crop is a box along the axes, so 2 x ``size`` numbers say what a grid of ``size`` squared
    would. They are computed on the CPU for every device: a GPU would round them otherwise, and a
    difference in the last digit moves a pixel next to an edge by 1e-5.

    Args:
        boxes: (B, 5) from :func:`crop_boxes`.
        side: Side of the images in pixels.
        size: Side of the crops in pixels.

    Returns:
        (B, 2, size) float32 in 0..side - 1, columns before rows.
    """
    theta = _affine(torch.from_numpy(boxes).float())
    columns = functional.affine_grid(theta, [len(boxes), 1, 1, size], align_corners=False)
    rows = functional.affine_grid(theta, [len(boxes), 1, size, 1], align_corners=False)
    grid = torch.stack([columns[:, 0, :, 0], rows[:, :, 0, 1]], dim=1)
    # From [-1, 1] to pixels as `grid_sample` computes it, in one rounding (a fused multiply-add).
    positions = ((grid + 1).double() * (side / 2) - 0.5).float()
    return positions.clamp_(0, side - 1)


def cut_out(images: Tensor, positions: Tensor) -> Tensor:
    """Cut and resize crops out of images, on their device, as :func:`resample` does on CPUs.

    Bilinear, first along columns of pixels, then along rows; equal to :func:`resample` up to the
    rounding of its four weights (below 1e-6).

    Args:
        images: (B, C, H, H) uint8.
        positions: (B, 2, S) from :func:`crop_positions`.

    Returns:
        (B, C, S, S) float32 in [0, 1].
    """
    batch, channels, side, _ = images.shape
    size = positions.shape[2]
    low = positions.floor()
    share = positions - low  # exact: no rounding, on any device
    first = low.long()
    second = (first + 1).clamp_max_(side - 1)

    def rows(index: Tensor) -> Tensor:
        chosen = index[:, 1, None, :, None].expand(batch, channels, size, side)
        return images.gather(2, chosen).float().div_(255)

    def columns(values: Tensor, index: Tensor) -> Tensor:
        return values.gather(3, index[:, 0, None, None, :].expand(batch, channels, size, size))

    down, across = share[:, 1, None, :, None], share[:, 0, None, None, :]
    strips = rows(first).mul_(1 - down).add_(rows(second).mul_(down))
    out = columns(strips, first).mul_(1 - across).add_(columns(strips, second).mul_(across))
    return out.clamp_(0, 1)


def crops_of(
    image_ids: Sequence[str],
    epochs: np.ndarray,
    side: int,
    size: int,
    seed: int,
    settings: AugmentSettings,
) -> Tensor:
    """As :func:`augment`, where the crops are yet to be cut out: their positions (B, 2, size)."""
    uniforms = uniforms_per_image(seed, epochs, image_ids, "crop", UNIFORMS)
    return crop_positions(crop_boxes(uniforms, settings), side, size)


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
