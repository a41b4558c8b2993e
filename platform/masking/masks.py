"""The two corruptions of masked image modelling: mean-filled blocks and stopped frequency bands.

Both act on pixels in [0, 1], before any normalisation. Semantics follow the published ones
(spatial: OpenMixup's ``BlockwiseMaskGenerator`` with ``mask_color="mean"``; frequency: USFM's
``Frequency_MASK``); USFM's numbers are not public, so those here are inferred defaults.

A mask is made from uniform numbers, one row per image, which are turned into a permutation by
sorting. An image's mask therefore depends on its own numbers alone, not on its batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from echostill.platform.config import Config
from echostill.platform.training.augment import uniforms_per_image

# The input size and patch size of the published models, which the default numbers are given for.
REFERENCE_SIZE = 224
REFERENCE_PATCH = 16


class SpatialMask(Config):
    """Random square blocks that are replaced by the image's own mean (A2MIM, SimMIM, USFM)."""

    ratio: float = Field(0.6, ge=0, le=1, description="Share of blocks that are hidden.")
    block_size: int = Field(32, ge=1, description="Side of a block in pixels.")
    image_size: int = Field(REFERENCE_SIZE, ge=1, description="Input size it is given for, pixels.")

    @model_validator(mode="after")
    def _whole_grid(self) -> "SpatialMask":
        if self.image_size % self.block_size:
            raise ValueError(
                f"block_size {self.block_size} does not divide image_size {self.image_size}: "
                "choose a block_size that cuts the image into whole blocks"
            )
        return self

    @property
    def side(self) -> int:
        """Blocks along one side of the image."""
        return self.image_size // self.block_size

    @property
    def count(self) -> int:
        """Blocks in the image, which is how many uniforms a mask takes."""
        return self.side**2

    @property
    def hidden(self) -> int:
        """Blocks that are hidden: ceil(ratio * count)."""
        return math.ceil(self.ratio * self.count)

    def scaled_to(self, image_size: int, patch_size: int = REFERENCE_PATCH) -> "SpatialMask":
        """Return the mask for another input size, each block as many patches wide as before.

        At the default of 32 pixels, two patches of 16, a model of 64 pixels and patch 8 gets
        blocks of 16. Where that does not divide the image, the next smaller count of patches does.
        """
        if image_size == self.image_size:
            return self
        patches = max(1, round(self.block_size / REFERENCE_PATCH))
        while patches > 1 and image_size % (patches * patch_size):
            patches -= 1
        return SpatialMask(ratio=self.ratio, block_size=patches * patch_size, image_size=image_size)


class FrequencyMask(Config):
    """Random annular bands of the spectrum that are stopped (USFM's band-stop mask).

    Radii, in frequency steps from the centre of the shifted spectrum: R0 = ``center_protect``,
    R1 = ``base_bandwidth``, R(k+1) = Rk + min(int(Rk * ``increase_factor``), ``max_increase``) as
    long as they stay within half the image. Band k is the ring (R(k-1), Rk]. The disc r <= R0 and
    the corners beyond the last radius always pass.
    """

    ratio: float = Field(0.45, ge=0, le=1, description="Share of bands that are stopped.")
    center_protect: int = Field(8, ge=0, description="Radius of the disc that always passes.")
    base_bandwidth: int = Field(12, ge=1, description="Outer radius of the first band.")
    increase_factor: float = Field(0.25, gt=0, description="Growth of the radii.")
    max_increase: int = Field(16, ge=1, description="Largest width of a band.")
    image_size: int = Field(REFERENCE_SIZE, ge=4, description="Input size it is given for, pixels.")

    @model_validator(mode="after")
    def _rings_exist(self) -> "FrequencyMask":
        if self.base_bandwidth <= self.center_protect:
            raise ValueError(
                f"base_bandwidth {self.base_bandwidth} must be larger than center_protect "
                f"{self.center_protect}: the first band lies between the two radii "
                "(otherwise it is empty, and the published generator doubles it)"
            )
        if int(self.base_bandwidth * self.increase_factor) < 1:
            raise ValueError(
                f"increase_factor {self.increase_factor} times base_bandwidth "
                f"{self.base_bandwidth} is below 1, so the radii would never grow: "
                f"increase_factor must be at least {1 / self.base_bandwidth:.4f}"
            )
        if 2 * self.base_bandwidth > self.image_size:
            raise ValueError(
                f"base_bandwidth {self.base_bandwidth} is beyond half of image_size "
                f"{self.image_size}: no band fits into the spectrum"
            )
        return self

    @property
    def radii(self) -> tuple[int, ...]:
        """All radii, ``count + 1`` of them, strictly increasing."""
        radii = [self.center_protect]
        radius = self.base_bandwidth
        while 2 * radius <= self.image_size:
            radii.append(radius)
            radius += min(int(radius * self.increase_factor), self.max_increase)
        return tuple(radii)

    @property
    def count(self) -> int:
        """Bands, which is how many uniforms a mask takes."""
        return len(self.radii) - 1

    @property
    def stopped(self) -> int:
        """Bands that are stopped: int(ratio * count)."""
        return int(self.ratio * self.count)

    def scaled_to(self, image_size: int) -> "FrequencyMask":
        """Return the mask for another input size, the radii scaled with it.

        A frequency step is one cycle per image, so scaled radii keep their place between the
        centre and the finest frequency. Rounded radii are nudged up where the first band would
        vanish or stop growing.
        """
        if image_size == self.image_size:
            return self
        scale = image_size / self.image_size
        center = max(1, round(self.center_protect * scale)) if self.center_protect else 0
        growing = math.ceil(1 / self.increase_factor)
        base = max(round(self.base_bandwidth * scale), center + 1)
        while int(base * self.increase_factor) < 1:
            base = max(base + 1, growing)
        return FrequencyMask(
            ratio=self.ratio,
            center_protect=center,
            base_bandwidth=base,
            increase_factor=self.increase_factor,
            max_increase=max(1, round(self.max_increase * scale)),
            image_size=image_size,
        )


class MaskSettings(Config):
    """Both masks."""

    spatial: SpatialMask = SpatialMask()
    frequency: FrequencyMask = FrequencyMask()

    def scaled_to(self, image_size: int, patch_size: int = REFERENCE_PATCH) -> "MaskSettings":
        """Return both masks for a model's input size and patch size, in pixels."""
        return MaskSettings(
            spatial=self.spatial.scaled_to(image_size, patch_size),
            frequency=self.frequency.scaled_to(image_size),
        )


class Masks(NamedTuple):
    """The masks of a batch."""

    spatial: Tensor  # (B, S, S) bool, True where pixels are hidden
    frequency: Tensor  # (B, S, S) bool, True where frequencies pass; the centre is frequency zero


@dataclass(frozen=True)
class MaskChoice:
    """Which blocks and bands of each image are corrupted.

    A batch's masks before they are drawn out to pixels: small enough to be made ahead of their use.
    """

    blocks: Tensor  # (B, blocks) bool, True where hidden
    bands: Tensor  # (B, bands) bool, True where stopped

    def to(self, device: torch.device | str) -> "MaskChoice":
        """Return the choice on a device; from pinned memory, without waiting for it."""
        return MaskChoice(
            self.blocks.to(device, non_blocking=True), self.bands.to(device, non_blocking=True)
        )

    def rows(self, start: int, end: int) -> "MaskChoice":
        """Return the choice for a part of the images."""
        return MaskChoice(self.blocks[start:end], self.bands[start:end])

    def pinned(self) -> "MaskChoice":
        """Return the choice in memory that a GPU copies from while it computes."""
        return MaskChoice(self.blocks.pin_memory(), self.bands.pin_memory())

    def masks(self, settings: MaskSettings, device: torch.device | str = "cpu") -> Masks:
        """Draw the masks out to pixels on a device: a few bytes of an image travel, no masks."""
        return Masks(
            _blocks_to_pixels(self.blocks.to(device, non_blocking=True), settings.spatial),
            _bands_to_pixels(self.bands.to(device, non_blocking=True), settings.frequency),
        )


def spatial_mask(uniforms: np.ndarray | Tensor, settings: SpatialMask) -> Tensor:
    """Make block masks.

    Args:
        uniforms: (B, settings.count) numbers in [0, 1), one row per image.
        settings: Block size, ratio and input size.

    Returns:
        (B, S, S) bool on the device of the uniforms, True where pixels are hidden: the blocks
        with the ``settings.hidden`` smallest numbers of the image.
    """
    return _blocks_to_pixels(_smallest(uniforms, settings.count, settings.hidden), settings)


def _blocks_to_pixels(chosen: Tensor, settings: SpatialMask) -> Tensor:
    grid = chosen.reshape(-1, settings.side, settings.side)
    block = settings.block_size
    return grid.repeat_interleave(block, dim=1).repeat_interleave(block, dim=2)


def frequency_mask(uniforms: np.ndarray | Tensor, settings: FrequencyMask) -> Tensor:
    """Make band-stop masks.

    Args:
        uniforms: (B, settings.count) numbers in [0, 1), one row per image.
        settings: Radii, ratio and input size.

    Returns:
        (B, S, S) bool on the device of the uniforms, True where frequencies pass, in the centred
        layout of ``fftshift``. The bands with the ``settings.stopped`` smallest numbers are
        stopped.
    """
    return _bands_to_pixels(_smallest(uniforms, settings.count, settings.stopped), settings)


def _bands_to_pixels(chosen: Tensor, settings: FrequencyMask) -> Tensor:
    always = chosen.new_zeros(len(chosen), 1)
    stopped = torch.cat([always, chosen, always], dim=1)
    bands = _band_map_on(settings, chosen.device)
    return ~stopped[:, bands.flatten()].reshape(-1, *bands.shape)


@lru_cache(maxsize=32)
def _band_map_on(settings: FrequencyMask, device: torch.device) -> Tensor:
    """The band map on a device, copied there once: each copy would make the device wait."""
    return band_map(settings).to(device)


@lru_cache(maxsize=32)
def band_map(settings: FrequencyMask) -> Tensor:
    """Name the band of each frequency of the centred spectrum.

    Returns:
        (S, S) int64: k for the ring (R(k-1), Rk], 0 for the protected disc and ``count + 1`` for
        the corners. Computed once per settings: do not write into it.
    """
    distance = torch.arange(settings.image_size) - settings.image_size // 2
    squared = distance[:, None] ** 2 + distance[None, :] ** 2
    # Squares keep the comparison r <= R in whole numbers, where a frequency on a radius is exact.
    return torch.bucketize(squared, torch.tensor(settings.radii) ** 2)


def apply_spatial(pixels: Tensor, mask: Tensor) -> Tensor:
    """Fill hidden pixels with the image's mean of each channel.

    The mean is that of the whole uncorrupted image, as in ``BlockwiseMaskGenerator``.

    Args:
        pixels: (B, C, S, S) in [0, 1].
        mask: (B, S, S) bool, True where hidden.

    Returns:
        (B, C, S, S) in [0, 1].
    """
    return torch.where(mask[:, None], pixels.mean(dim=(2, 3), keepdim=True), pixels)


def apply_frequency(pixels: Tensor, mask: Tensor) -> Tensor:
    """Stop frequencies: |iFFT2(FFT2(x) M)|.

    Rings are symmetric about frequency zero, so the inverse transform is real up to rounding, and
    the modulus, as published, only folds the undershoot below zero upwards. Values can overshoot
    1 a little; they are kept, as published.

    Args:
        pixels: (B, C, S, S) in [0, 1].
        mask: (B, S, S) bool, True where frequencies pass, centred layout.

    Returns:
        (B, C, S, S), at least 0, in the type of the pixels.
    """
    if pixels.shape[1] > 1 and pixels.stride(1) == 0:  # grey: all channels are the same memory
        return apply_frequency(pixels[:, :1], mask).expand_as(pixels)
    # Half precision has no Fourier transform for every size. Moving the mask to the transform's
    # own layout equals shifting the spectrum there and back, and is cheaper; so is the half of the
    # spectrum that a real image's other half mirrors.
    exact = pixels if pixels.dtype == torch.float64 else pixels.float()
    side = pixels.shape[-1]
    kept = torch.fft.ifftshift(mask, dim=(-2, -1))[:, None, :, : side // 2 + 1]
    stopped: Tensor = torch.fft.irfft2(torch.fft.rfft2(exact) * kept, s=(side, side))
    return stopped.abs().to(pixels.dtype)


def apply_both(pixels: Tensor, masks: Masks) -> Tensor:
    """Corrupt one input by both masks, blocks first (USFM's joint input).

    In this order the stopped bands are empty in the result and the hidden blocks leak nowhere;
    the order is not public.
    """
    return apply_frequency(apply_spatial(pixels, masks.spatial), masks.frequency)


def draw_masks(
    settings: MaskSettings,
    seed: int,
    epochs: np.ndarray,
    image_ids: Sequence[str],
    device: torch.device | str = "cpu",
    draw: int = 0,
) -> Masks:
    """Draw the masks of a batch, as :func:`choose_masks` chooses them, out to pixels."""
    return choose_masks(settings, seed, epochs, image_ids, draw).masks(settings, device)


def choose_masks(
    settings: MaskSettings,
    seed: int,
    epochs: np.ndarray,
    image_ids: Sequence[str],
    draw: int = 0,
) -> MaskChoice:
    """Choose the blocks and bands of a batch, a pure function of (seed, epoch, image id, draw).

    Args:
        settings: Masks already scaled to the model's input size.
        seed: Seed of the run.
        epochs: (B,) epoch each image belongs to.
        image_ids: The images.
        draw: Which of several draws for the same image and epoch.
    """
    spatial, frequency = (
        uniforms_per_image(seed, epochs, image_ids, f"{view} mask {draw}", count)
        for view, count in (
            ("spatial", settings.spatial.count),
            ("frequency", settings.frequency.count),
        )
    )
    # Sorted on the CPU in float64, so that a mask is the same on every device.
    return MaskChoice(
        _smallest(spatial, settings.spatial.count, settings.spatial.hidden),
        _smallest(frequency, settings.frequency.count, settings.frequency.stopped),
    )


def _smallest(uniforms: np.ndarray | Tensor, count: int, chosen: int) -> Tensor:
    """Mark the ``chosen`` smallest of each row's ``count`` numbers: (B, count) bool."""
    numbers = torch.as_tensor(uniforms)
    if numbers.ndim != 2 or numbers.shape[1] != count:
        raise ValueError(f"a mask takes uniforms of shape (B, {count}), got {tuple(numbers.shape)}")
    order = numbers.argsort(dim=1, stable=True)[:, :chosen]
    marked = torch.zeros(numbers.shape, dtype=torch.bool, device=numbers.device)
    return marked.scatter_(1, order, True)
