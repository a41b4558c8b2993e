"""Heads on an encoder: a linear classifier, and a feature-pyramid segmentation head.

The segmentation head follows the structure of the published downstream code: blocks 4, 6, 8 and 12
of 12, a 1x1 convolution to 48 channels each, scales 4, 2, 1 and 1/2 of the token grid, then a
feature pyramid (Lin et al., 2017) of 128 channels. The computation of the scales, the norms and the
sum of the levels are our choice; they are the same for every model compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from echostill.platform.errors import UsageError

if TYPE_CHECKING:
    from echostill.platform.models import Encoder


def segmentation_layers(depth: int) -> tuple[int, int, int, int]:
    """Blocks whose tokens the segmentation head reads: a third, half, two thirds, all of them.

    4, 6, 8, 12 for a depth of 12, as published; 2, 3, 4, 6 for a depth of 6.
    """
    return max(depth // 3, 1), max(depth // 2, 1), max(2 * depth // 3, 1), depth


def check_segmentation(encoder: Encoder) -> None:
    """Refuse an encoder whose blocks do not all give tokens of one width on one square grid.

    Raises:
        UsageError: as those of a model with stages do not.
    """
    layers = sorted({*encoder.third_layers(), *segmentation_layers(encoder.depth)})
    found = {encoder.layer(layer) for layer in layers}
    if len(found) > 1 or any(each.grid[0] != each.grid[1] for each in found):
        listed = ", ".join(
            f"{each.dim} channels on {each.grid[0]} x {each.grid[1]}" for each in sorted(found)
        )
        raise UsageError(
            f"'{encoder.name}' cannot be evaluated on segmentation: its blocks give {listed}, and "
            "the head needs tokens of one width on one square grid. Choose a plain ViT, or leave "
            "out the segmentation tasks."
        )


class ClassificationHead(nn.Module):
    """Batch norm without parameters, then one linear layer, on the encoder's pooled feature.

    Pooled features of different images often share a large common part and differ little; without
    the norm a short training fits only that part. MAE's linear probe (He et al., 2022) uses a norm
    for the same reason.
    """

    def __init__(self, dim: int, classes: int) -> None:
        """Create a head for features of size ``dim``; near zero at first, equal for all classes."""
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def set_statistics(self, features: Tensor) -> None:
        """Use the mean and variance of the training side's features (n, dim) from now on.

        Running statistics of a few small batches are noisy and lag behind a changing encoder.
        """
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(features.mean(0))
        self.norm.running_var.copy_(features.var(0, unbiased=False))

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits (B, classes) of pooled features (B, dim); B is at least 2 in training."""
        logits: Tensor = self.linear(self.norm(pooled))
        return logits


class SegmentationHead(nn.Module):
    """Feature pyramid over four blocks' tokens; logits at the size of the image."""

    def __init__(
        self, dim: int, outputs: int, image_size: int, *, channels: int = 48, width: int = 128
    ) -> None:
        """Make the head.

        Args:
            dim: Size of a token.
            outputs: Logits per pixel.
            image_size: Side of the result in pixels.
            channels: Channels of each scale.
            width: Channels of the pyramid.
        """
        super().__init__()
        self.dim = dim
        self.image_size = image_size
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.reduce = nn.ModuleList(nn.Conv2d(dim, channels, 1) for _ in range(4))
        self.scale = nn.ModuleList(
            [
                nn.Sequential(_double(channels), nn.ReLU(), _double(channels)),
                _double(channels),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for _ in range(4))
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(1, width), nn.ReLU()
            )
            for _ in range(4)
        )
        self.classify = nn.Conv2d(width, outputs, 1)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return logits (B, outputs, S, S).

        Args:
            tokens: Patch tokens of four blocks, each (B, N, dim), N a square number, no prefix.

        Raises:
            UsageError: The tokens are not on one square grid, as with hierarchical models.
        """
        levels = []
        for layer in tokens:
            if layer.shape[-1] != self.dim or math.isqrt(layer.shape[1]) ** 2 != layer.shape[1]:
                raise UsageError(
                    f"the segmentation head needs blocks of {self.dim} channels on a square grid, "
                    f"got {layer.shape[1]} tokens of {layer.shape[2]} channels. Choose a plain ViT."
                )
        parts = zip(tokens, self.norms, self.reduce, self.scale, self.lateral, strict=True)
        for layer, norm, reduce, scale, lateral in parts:
            side = round(layer.shape[1] ** 0.5)
            grid = norm(layer).transpose(1, 2).reshape(len(layer), -1, side, side)
            levels.append(lateral(scale(reduce(grid))))
        for finer in (2, 1, 0):  # top down: each level adds the coarser one above it
            levels[finer] = levels[finer] + _resize(levels[finer + 1], levels[finer].shape[-1])
        finest = levels[0].shape[-1]
        smoothed = [
            _resize(smooth(level), finest)
            for smooth, level in zip(self.smooth, levels, strict=True)
        ]
        return _resize(self.classify(torch.stack(smoothed).mean(0)), self.image_size)


class ClassificationTask(nn.Module):
    """An encoder with a classification head: cross-entropy, probabilities."""

    class_weights: Tensor

    def __init__(self, encoder: Encoder, classes: int, class_weights: Tensor | None = None) -> None:
        """Put a new head on ``encoder``, which is used as it is, not copied.

        Args:
            encoder: The encoder.
            classes: Number of classes.
            class_weights: (classes,) weights of the classes' rows in the loss; None weights all
                rows equally.
        """
        super().__init__()
        self.encoder = encoder
        self.head = ClassificationHead(encoder.feature_dim, classes)
        weights = torch.ones(classes) if class_weights is None else class_weights.float()
        self.register_buffer("class_weights", weights, persistent=False)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits (B, classes) of pixels (B, 3, S, S) in [0, 1]."""
        logits: Tensor = self.head(self.encoder(pixels).pooled.float())
        return logits

    def training_step(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Return the mean weighted cross-entropy; ``targets`` are labels (B,) int64."""
        # Divided by the batch size, not by the sum of the weights in the batch; otherwise a batch
        # of a single class would count as much as any other.
        logits = self.logits(pixels).float()
        rows = functional.cross_entropy(logits, targets, reduction="none")
        return (rows * self.class_weights[targets]).mean()

    def predict(self, pixels: Tensor) -> Tensor:
        """Return class probabilities (B, classes)."""
        return torch.softmax(self.logits(pixels).float(), dim=1)


class SegmentationTask(nn.Module):
    """An encoder with a segmentation head: sigmoid for one class, else softmax with background."""

    def __init__(
        self, encoder: Encoder, classes: int, width: int = 128, dice_weight: float = 0.0
    ) -> None:
        """Put a new head on ``encoder``, which is used as it is, not copied.

        Args:
            encoder: The encoder.
            classes: Number of foreground classes.
            width: Channels of the pyramid.
            dice_weight: Share of the soft Dice loss; the rest is the pixels' cross-entropy.
        """
        super().__init__()
        self.dice_weight = dice_weight
        self.encoder = encoder
        self.classes = classes
        self.layers: Sequence[int] = segmentation_layers(encoder.depth)
        outputs = 1 if classes == 1 else classes + 1
        self.head: nn.Module = SegmentationHead(
            encoder.dim, outputs, encoder.image_size, width=width
        )

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 1 or classes + 1, S, S) of pixels (B, 3, S, S) in [0, 1]."""
        outputs = self.encoder(pixels, self.layers).intermediate
        logits: Tensor = self.head([part[:, self.encoder.prefix_tokens :] for part in outputs])
        return logits

    def training_step(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropy and soft Dice loss; ``targets`` are masks (B, S, S) of classes."""
        logits = self.logits(pixels).float()
        wanted = functional.one_hot(targets.long(), self.classes + 1)[..., 1:]
        wanted = wanted.permute(0, 3, 1, 2).to(logits.dtype)
        if self.classes == 1:
            pixel_loss = functional.binary_cross_entropy_with_logits(logits, wanted)
            shares = torch.sigmoid(logits)
        else:
            pixel_loss = functional.cross_entropy(logits, targets.long())
            shares = torch.softmax(logits, dim=1)[:, 1:]
        overlap = soft_dice_loss(shares, wanted)
        return (1 - self.dice_weight) * pixel_loss + self.dice_weight * overlap

    def predict(self, pixels: Tensor) -> Tensor:
        """Return shares (B, classes + 1, S, S) that sum to 1, the background's first."""
        logits = self.logits(pixels).float()
        if self.classes == 1:
            share = torch.sigmoid(logits)
            return torch.cat([1 - share, share], dim=1)
        return torch.softmax(logits, dim=1)


def soft_dice_loss(shares: Tensor, wanted: Tensor) -> Tensor:
    """Return 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1), mean over the foreground classes.

    The sums run over the whole batch (Milletari et al., 2016, without the squares), so that an
    image without foreground does not contribute a full loss.

    Args:
        shares: (B, classes, S, S) predicted probabilities.
        wanted: (B, classes, S, S) 0 or 1.
    """
    both = (shares * wanted).sum((0, 2, 3))
    total = shares.sum((0, 2, 3)) + wanted.sum((0, 2, 3))
    return 1 - ((2 * both + 1) / (total + 1)).mean()


def _double(channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, 2, stride=2)


def _resize(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
