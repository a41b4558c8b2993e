"""One interface over every backbone: pixels in [0, 1] in, tokens and a pooled feature out."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from echostill.platform.errors import UsageError
from echostill.platform.models.shapes import Grid, Layer, Shapes, measure

Pooling = Literal["mean", "class-token", "timm"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch of B images with N patch tokens of D channels.

    Attributes:
        tokens: (B, prefix + N, D), the last block's output, after the final norm if the model has
            one that acts on tokens. `usfm` and `tinyusfm` have none: their norm follows the mean.
            Empty (B, 0, D) where the model ends in something else than a grid of patches.
        pooled: (B, F), one feature of each image, pooled as the encoder was told to.
        intermediate: (B, prefix + N, D) each, the raw output of every block asked for. A model with
            stages gives the positions and channels of its own stages instead.
    """

    tokens: Tensor
    pooled: Tensor
    intermediate: tuple[Tensor, ...]


class Encoder(nn.Module):
    """A timm backbone that takes pixels in [0, 1] and normalises them itself.

    Attributes:
        backbone: the timm module, without a classification head. Its keys are the published ones.
        name: the zoo's name for it, e.g. `tinyusfm` or `timm:vit_small_patch16_224`.
        image_size: side of the square input in pixels.
        patch_size: side of a patch in pixels: the input's over the final grid's, where that is a
            whole number; else the backbone's total stride.
        dim: channels of a final token.
        feature_dim: numbers of a pooled feature.
        depth: number of blocks (of stages, for a backbone with stages).
        grid: rows and columns of the final patch tokens; None where it ends in something else.
        prefix_tokens: tokens before the patch tokens (1 = a class token).
        pooling: how `pooled` is made: the mean of the patch tokens, or the class token, each with
            `fc_norm` where the model has one; or by the model's own head in timm
            (`forward_head(pre_logits=True)`).
        mean, std: the normalisation of the three channels, on the [0, 1] scale.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        name: str,
        image_size: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        pooling: Pooling = "mean",
        shapes: Shapes | None = None,
    ) -> None:
        super().__init__()
        # Some families keep what a pass computed, so a copy is measured.
        self._shapes = shapes or measure(copy.deepcopy(backbone), name, image_size)
        _check_pooling(self._shapes, name, pooling)
        traits: Any = backbone
        self.backbone = backbone
        self.name = name
        self.image_size = image_size
        self.pooling: Pooling = pooling
        self.dim = self._shapes.dim
        self.feature_dim = self._shapes.pooled if pooling == "timm" else self.dim
        self.depth = len(self._shapes.layers)
        self.grid = self._shapes.grid
        # Where the blocks' outputs come without what stands before the patches, the final ones are
        # given without it too, so that one number holds for both.
        self.prefix_tokens = self._shapes.extra if self._shapes.prefixed and self.grid else 0
        self.patch_size = int(traits.feature_info[-1]["reduction"])
        if self.grid and self.grid[0] == self.grid[1] and image_size % self.grid[0] == 0:
            self.patch_size = image_size // self.grid[0]
        self.mean = _three(mean)
        self.std = _three(std)
        # Not persistent: a weights file holds the published keys and nothing else.
        self.register_buffer("_mean", torch.tensor(self.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(1, 3, 1, 1), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Shift and scale pixels (B, 3, S, S) in [0, 1] to what the backbone was made for."""
        return (pixels - self.get_buffer("_mean")) / self.get_buffer("_std")

    def forward(self, pixels: Tensor, layers: Sequence[int] = ()) -> EncoderOutput:
        """Encode a batch.

        Args:
            pixels: (B, 3, S, S) float, values in [0, 1], S = `image_size`.
            layers: 1-based block counts ("after l blocks"), each in 1..depth, in any order.

        Returns:
            The tokens, the pooled feature and one tensor for each of `layers`, in their order.

        Raises:
            UsageError: the shape or a layer is not one the model has.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise UsageError(
                f"'{self.name}' takes pixels of shape (batch, 3, {self.image_size}, "
                f"{self.image_size}), not {tuple(pixels.shape)}. Repeat a grey image three times."
            )
        if tuple(pixels.shape[2:]) != (self.image_size, self.image_size):
            raise UsageError(
                f"'{self.name}' takes {self.image_size}x{self.image_size} pixels, not "
                f"{pixels.shape[2]}x{pixels.shape[3]}. Resize the images, or create the encoder "
                "with that image_size."
            )
        beyond = [layer for layer in layers if not 1 <= layer <= self.depth]
        if beyond:
            raise UsageError(
                f"'{self.name}' has no layer {beyond[0]}: it has {self.depth} blocks, so layers go "
                f"from 1 to {self.depth}."
            )
        normalised = self.normalise(pixels)
        backbone: Any = self.backbone
        intermediate: tuple[Tensor, ...] = ()
        if layers:
            unique = sorted(set(layers))
            # A convolutional or hierarchical backbone knows only feature maps, a ViT gives tokens.
            form: dict[str, Any] = {"output_fmt": "NCHW"}
            if self.prefix_tokens:  # 'NLC' is known to these alone
                form = {"output_fmt": "NLC", "return_prefix_tokens": True}
            final, blocks = backbone.forward_intermediates(
                normalised, indices=[layer - 1 for layer in unique], norm=False, **form
            )
            by_layer = {
                layer: self._block_tokens(block)
                for layer, block in zip(unique, blocks, strict=True)
            }
            intermediate = tuple(by_layer[layer] for layer in layers)
        else:
            final = backbone.forward_features(normalised)
        tokens = self._final_tokens(final)
        return EncoderOutput(tokens, self._pool(final, tokens), intermediate)

    def layer(self, layer: int) -> Layer:
        """Return channels and grid of a block's output, counted from 1."""
        return self._shapes.layers[layer - 1]

    def third_layers(self) -> tuple[int, int, int]:
        """Return the layers that end each third of the depth: (4, 8, 12) for twelve blocks."""
        return (max(self.depth // 3, 1), max(2 * self.depth // 3, 1), self.depth)

    def patch_grid(self) -> Grid:
        """Return the grid of the final patch tokens.

        Raises:
            UsageError: the model ends in something else.
        """
        if self.grid is None:
            raise UsageError(
                f"the model '{self.name}' ends in no grid of patch tokens, which is needed here. "
                "Choose another model, such as a ViT."
            )
        return self.grid

    def _pool(self, final: Any, tokens: Tensor) -> Tensor:
        """Pool the final output to (B, F)."""
        backbone: Any = self.backbone
        if self.pooling == "timm":
            pooled: Tensor = backbone.forward_head(final, pre_logits=True)
            return pooled
        if self.pooling == "class-token":
            one = final[:, 0]
        else:  # of both published models (USFM and TinyUSFM for classification)
            one = tokens[:, self.prefix_tokens :].mean(dim=1)
        norm = getattr(backbone, "fc_norm", None)
        normed: Tensor = norm(one) if norm is not None else one
        return normed

    def _block_tokens(self, block: Any) -> Tensor:
        if isinstance(block, Tensor):
            return _flatten_map(block)
        patches, prefix = block
        return torch.cat((prefix, patches), dim=1)

    def _final_tokens(self, features: Any) -> Tensor:
        shapes = self._shapes
        if shapes.grid is None:
            first: Tensor = features if isinstance(features, Tensor) else features[0]
            return first.new_empty(len(first), 0, self.dim)
        if features.ndim == 4:
            return _flatten_map(features.permute(0, 3, 1, 2) if shapes.channels_last else features)
        tokens: Tensor = features
        dropped = shapes.extra - self.prefix_tokens
        return tokens[:, dropped:] if dropped else tokens


def _flatten_map(features: Tensor) -> Tensor:
    """Turn a feature map (B, D, H, W) into tokens (B, H * W, D), row by row."""
    return features.flatten(2).transpose(1, 2)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return (red, green, blue)


def _check_pooling(shapes: Shapes, name: str, pooling: Pooling) -> None:
    """Refuse a pooling that a model does not have."""
    possible = {"mean": shapes.grid is not None, "class-token": shapes.class_token, "timm": True}
    if possible[pooling]:
        return
    lacks = {
        "mean": "ends in no grid of patch tokens, of which a mean could be taken",
        "class-token": "has no class token",
    }
    others = " or ".join(f"'{other}'" for other, has in possible.items() if has)
    raise UsageError(
        f"the model '{name}' {lacks[pooling]}: set pooling to {others} (teacher.pooling)."
    )
