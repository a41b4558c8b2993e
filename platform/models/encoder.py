"""One interface over every backbone: pixels in [0, 1] in, tokens and a pooled feature out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from echostill.platform.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch of B images with N patch tokens of D channels.

    Attributes:
        tokens: (B, prefix + N, D), the last block's output, after the final norm if the model has
            one that acts on tokens. `usfm` and `tinyusfm` have none: their norm follows the mean.
        pooled: (B, D), the model's own pooling: the mean over the N patch tokens, then `fc_norm`.
        intermediate: (B, prefix + N, D) each, the raw output of every block asked for. A
            convolutional backbone gives the positions and channels of its own stages instead.
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
        patch_size: side of a patch in pixels (for a convolutional backbone: its total stride).
        dim: channels of a token.
        depth: number of blocks (for a convolutional backbone: of stages).
        prefix_tokens: tokens before the patch tokens (1 = a class token).
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
    ) -> None:
        super().__init__()
        for method in ("forward_features", "forward_intermediates"):
            if not hasattr(backbone, method):
                raise UsageError(
                    f"The model '{name}' cannot be an encoder: it has no {method}(). "
                    "Choose a timm model that gives intermediate features, such as a ViT."
                )
        traits: Any = backbone
        self.backbone = backbone
        self.name = name
        self.image_size = image_size
        self.dim = int(traits.num_features)
        self.depth = len(traits.feature_info)
        self.prefix_tokens = int(getattr(backbone, "num_prefix_tokens", 0))
        self.patch_size = int(traits.feature_info[-1]["reduction"])
        self.mean = _three(mean)
        self.std = _three(std)
        self._channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
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
            if self.prefix_tokens:
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
        return EncoderOutput(tokens, self.pool(tokens), intermediate)

    def pool(self, tokens: Tensor) -> Tensor:
        """Pool final tokens (B, prefix + N, D) as the model does: mean of the patches, `fc_norm`.

        This is the pooling of both published models (USFM and TinyUSFM for classification).
        """
        mean = tokens[:, self.prefix_tokens :].mean(dim=1)
        norm = getattr(self.backbone, "fc_norm", None)
        return norm(mean) if norm is not None else mean

    def third_layers(self) -> tuple[int, int, int]:
        """Return the layers that end each third of the depth: (4, 8, 12) for twelve blocks."""
        return (self.depth // 3, 2 * self.depth // 3, self.depth)

    def _block_tokens(self, block: Any) -> Tensor:
        if isinstance(block, Tensor):
            return _flatten_map(block)
        patches, prefix = block
        return torch.cat((prefix, patches), dim=1)

    def _final_tokens(self, features: Any) -> Tensor:
        if isinstance(features, Tensor) and features.ndim == 3:
            return features
        if isinstance(features, Tensor) and features.ndim == 4:
            return _flatten_map(features.permute(0, 3, 1, 2) if self._channels_last else features)
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UsageError(
            f"The model '{self.name}' cannot be an encoder: its features are {shape}, but a token "
            "sequence (B, N, D) or a feature map (B, D, H, W) is needed. Choose a ViT-like model."
        )


def _flatten_map(features: Tensor) -> Tensor:
    """Turn a feature map (B, D, H, W) into tokens (B, H * W, D), row by row."""
    return features.flatten(2).transpose(1, 2)


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return (red, green, blue)
