"""What shapes a backbone gives, measured by one pass over stand-ins that hold no numbers.

timm's families differ: some end in a feature map, some in tokens with or without a class token,
some in the class token alone or in a list of maps, and their stages may halve the grid. No
description of that holds for all families and versions. One pass on the meta device computes
nothing and tells it for certain, before any work is planned on it.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from echostill.platform.errors import UsageError

Grid = tuple[int, int]  # rows and columns of patches


class Layer(NamedTuple):
    """The output of a block (of a stage, where a backbone has stages)."""

    dim: int  # channels
    grid: Grid


@dataclass(frozen=True)
class Shapes:
    """What a backbone makes of one image.

    Attributes:
        dim: channels of the final output.
        grid: rows and columns of the final patch tokens; None where the final output is none.
        extra: final tokens that stand before the patches (the class token and the like).
        class_token: whether the first of them is a class token.
        channels_last: whether a final feature map has its channels last.
        layers: every intermediate output, first to last.
        prefixed: whether the intermediate outputs can be had with their `extra` tokens.
        pooled: numbers that the model's own head pools an image to.
    """

    dim: int
    grid: Grid | None
    extra: int
    class_token: bool
    channels_last: bool
    layers: tuple[Layer, ...]
    prefixed: bool
    pooled: int


class _Pass(nn.Module):
    """One pass that shows the final features, all intermediate maps and what timm pools."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> tuple[Any, Any, Any]:
        backbone: Any = self.backbone
        final, maps = backbone.forward_intermediates(pixels, norm=False, output_fmt="NCHW")
        return final, maps, backbone.forward_head(final, pre_logits=True)


def measure(backbone: nn.Module, name: str, image_size: int) -> Shapes:
    """Measure a backbone on square images, in evaluation mode, without computing anything.

    Args:
        backbone: a timm module; its mode and its weights are left as they are, but it may keep
            values without numbers of the pass, so it should not be used for another.
        name: the zoo's name, for messages.
        image_size: side of the input in pixels.

    Raises:
        UsageError: it gives no intermediate features, or cannot take such images.
    """
    for method in ("forward_features", "forward_intermediates", "forward_head"):
        if not hasattr(backbone, method):
            raise UsageError(
                f"The model '{name}' cannot be an encoder: it has no {method}(). "
                "Choose a timm model that gives intermediate features, such as a ViT."
            )
    try:
        features, maps, pooled = run_on_meta(_Pass(backbone), image_size)
    except Exception as error:  # timm's and torch's own, of any kind
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"The model '{name}' cannot be an encoder for images of {image_size} pixels: {words}. "
            "Choose another image_size, or another model, such as a ViT."
        ) from error
    if not maps or any(not isinstance(each, Tensor) or each.ndim != 4 for each in maps):
        raise UsageError(
            f"The model '{name}' cannot be an encoder: its intermediate features are not maps "
            "(B, D, H, W). Choose another timm model, such as a ViT."
        )
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        raise UsageError(
            f"The model '{name}' cannot be an encoder: its head pools an image to more than one "
            "row of numbers. Choose another timm model, such as a ViT."
        )
    traits: Any = backbone
    layers = tuple(Layer(each.shape[1], (each.shape[2], each.shape[3])) for each in maps)
    dim = int(traits.num_features)
    last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
    grid, extra = _final_grid(features, dim, layers[-1].grid, last)
    prefixed = "return_prefix_tokens" in signature(traits.forward_intermediates).parameters
    # Registers alone may stand there. Whatever module holds it, timm's name for it is the same.
    named = {name.rpartition(".")[2] for name, _ in backbone.named_parameters()}
    token = extra > 0 and "cls_token" in named
    return Shapes(dim, grid, extra, token, last, layers, prefixed, pooled.shape[1])


def run_on_meta(module: nn.Module, image_size: int) -> Any:
    """Run a module on one image of stand-ins, in evaluation mode, and return what it gives."""
    stand_ins = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    pixels = torch.empty(1, 3, image_size, image_size, device="meta")
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return functional_call(module, stand_ins, (pixels,))
    finally:
        module.train(training)


def _final_grid(features: Any, dim: int, last_grid: Grid, channels_last: bool) -> tuple[Any, int]:
    """Return the grid of the final patches and how many tokens stand before them."""
    if not isinstance(features, Tensor):
        return None, 0
    if features.ndim == 4:
        _, *shape = features.shape
        rows, columns, channels = shape if channels_last else (*shape[1:], shape[0])
        return ((rows, columns) if channels == dim else None), 0
    if features.ndim == 3 and features.shape[2] == dim:
        extra = features.shape[1] - last_grid[0] * last_grid[1]
        return (last_grid, extra) if extra >= 0 else (None, features.shape[1])
    return None, 0
