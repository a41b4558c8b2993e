"""What the published protocol trains: an encoder with a head, or the reference U-Net."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from echostill.eval.heads import SegmentationTask
from echostill.platform.models import Encoder
from echostill.platform.models.shapes import Layer

LEVELS = 4  # of a feature pyramid
CHANNELS = 48  # of each of them before the pyramid [C]
UNET_WIDTH = 16  # channels of the U-Net's first level: 0.5M parameters at four levels [I]


class LinearClassifier(nn.Module):
    """An encoder and one linear layer on its pooled feature (mean, fc_norm), as published [C]."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        """Put a new linear layer on ``encoder``; torch's default initial weights [I]."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.feature_dim, classes)

    def training_step(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of pixels (B, 3, S, S) and labels (B,)."""
        return functional.cross_entropy(self.head(self.encoder(pixels).pooled).float(), targets)

    def predict(self, pixels: Tensor) -> Tensor:
        """Return class probabilities (B, classes)."""
        return torch.softmax(self.head(self.encoder(pixels).pooled).float(), dim=1)


class StageHead(nn.Module):
    """The published pyramid for models with stages, whose maps have scales of their own.

    Each of the last four stages: layer norm, 1x1 convolution to 48 channels, then to the pyramid's
    width; top-down sums, a 3x3 convolution each, their mean at the finest scale.
    """

    def __init__(self, layers: Sequence[Layer], outputs: int, image_size: int, width: int) -> None:
        """Make the head for stages of these shapes, finest first."""
        super().__init__()
        self.grids = [layer.grid for layer in layers]
        self.image_size = image_size
        self.norms = nn.ModuleList(nn.LayerNorm(layer.dim) for layer in layers)
        self.reduce = nn.ModuleList(nn.Conv2d(layer.dim, CHANNELS, 1) for layer in layers)
        self.lateral = nn.ModuleList(nn.Conv2d(CHANNELS, width, 1) for _ in layers)
        self.smooth = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(1, width), nn.ReLU()
            )
            for _ in layers
        )
        self.classify = nn.Conv2d(width, outputs, 1)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return logits (B, outputs, S, S) of the stages' positions (B, N, D)."""
        levels: list[Tensor] = []
        parts = zip(tokens, self.grids, self.norms, self.reduce, self.lateral, strict=True)
        for stage, grid, norm, reduce, lateral in parts:
            maps = norm(stage).transpose(1, 2).reshape(len(stage), -1, *grid)
            levels.append(lateral(reduce(maps)))
        for finer in range(len(levels) - 2, -1, -1):
            levels[finer] = levels[finer] + _resize(levels[finer + 1], levels[finer].shape[2:])
        smoothed = [
            _resize(smooth(level), levels[0].shape[2:])
            for smooth, level in zip(self.smooth, levels, strict=True)
        ]
        logits = self.classify(torch.stack(smoothed).mean(0))
        return _resize(logits, (self.image_size, self.image_size))


class StageSegmentation(SegmentationTask):
    """An encoder with stages and :class:`StageHead`; loss and prediction as for a plain ViT."""

    def __init__(
        self, encoder: Encoder, classes: int, width: int = 128, dice_weight: float = 0.0
    ) -> None:
        """Put a new head on ``encoder``, as :class:`SegmentationTask` does."""
        nn.Module.__init__(self)
        self.dice_weight = dice_weight
        self.encoder = encoder
        self.classes = classes
        self.layers = range(max(encoder.depth - LEVELS, 0) + 1, encoder.depth + 1)
        shapes = [encoder.layer(layer) for layer in self.layers]
        outputs = 1 if classes == 1 else classes + 1
        self.head = StageHead(shapes, outputs, encoder.image_size, width)


class UNet(SegmentationTask):
    """A light U-Net (Ronneberger et al., 2015) with group norms: a reference without an encoder."""

    def __init__(self, classes: int, dice_weight: float = 0.0, width: int = UNET_WIDTH) -> None:
        """Make a U-Net of four levels for images of which the side is a multiple of 8."""
        nn.Module.__init__(self)
        self.dice_weight = dice_weight
        self.classes = classes
        widths = [width * 2**level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            _block(before, after) for before, after in zip([3, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _block(fine + coarse, fine)
            for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.head = nn.Conv2d(width, 1 if classes == 1 else classes + 1, 1)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 1 or classes + 1, S, S) of pixels (B, 3, S, S) in [0, 1]."""
        kept: list[Tensor] = []
        maps = pixels - 0.5
        for block in self.down:
            maps = block(functional.max_pool2d(maps, 2) if kept else maps)
            kept.append(maps)
        for block, finer in zip(self.up, kept[-2::-1], strict=True):
            maps = block(torch.cat((finer, _resize(maps, finer.shape[2:])), dim=1))
        logits: Tensor = self.head(maps)
        return logits


def network_for(
    encoder: Encoder | None, classes: int, *, segments: bool, width: int, dice_weight: float
) -> nn.Module:
    """Return what is trained: the head that fits the encoder; without one, the U-Net.

    Args:
        encoder: Is used as it is, not copied.
        classes: Classes, or foreground classes of masks.
        segments: Whether masks are predicted, or one label.
        width: Channels of the pyramid.
        dice_weight: Share of the soft Dice loss.
    """
    if encoder is None:
        return UNet(classes, dice_weight)
    if not segments:
        return LinearClassifier(encoder, classes)
    shapes = {encoder.layer(layer) for layer in range(1, encoder.depth + 1)}
    plain = len(shapes) == 1 and all(shape.grid[0] == shape.grid[1] for shape in shapes)
    task = SegmentationTask if plain else StageSegmentation
    return task(encoder, classes, width, dice_weight)


def _block(before: int, after: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.GroupNorm(1, after),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1, bias=False),
        nn.GroupNorm(1, after),
        nn.ReLU(),
    )


def _resize(images: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return functional.interpolate(images, tuple(size), mode="bilinear", align_corners=False)
