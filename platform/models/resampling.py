"""Weights made for one input size at another: timm's own method resamples a model's positions."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from echostill.platform.errors import UsageError
from echostill.platform.models.encoder import Encoder
from echostill.platform.models.registry import create_encoder

_TABLE = "relative_position_bias_table"


def made_for(tensors: Mapping[str, Tensor], encoder: Encoder) -> int | None:
    """Tell which input size weights were made for, by the number of their positions.

    Args:
        tensors: weights by key, without wrappers.
        encoder: an encoder of that model, at any input size.

    Returns:
        The side in pixels; None where nothing in the weights depends on it, or not in a way that
        is understood here.
    """
    if encoder.grid is None:
        return None
    side = encoder.grid[0]
    own = encoder.backbone.state_dict()
    if "pos_embed" in own and "pos_embed" in tensors:
        mine, given = own["pos_embed"], tensors["pos_embed"]
        if mine.ndim == given.ndim == 3:  # (1, prefix + grid * grid, D)
            found = _square_root(given.shape[1] - (mine.shape[1] - side * side))
            return None if found is None else found * encoder.patch_size
        return None
    tables = [key for key in own if key.endswith(_TABLE)]
    given_tables = [value for key, value in tensors.items() if key.endswith(_TABLE)]
    if tables and given_tables:  # ((2 grid - 1)^2 + those of the class token, heads)
        odd = _square_root(
            given_tables[0].shape[0] - (own[tables[0]].shape[0] - (2 * side - 1) ** 2)
        )
        if odd is not None and odd % 2:
            return (odd + 1) // 2 * encoder.patch_size
    return None


def sized_for(encoder: Encoder, side: int) -> Encoder:
    """Build the same model at another input size, which `resample` then brings to the encoder's.

    Raises:
        UsageError: timm has no method for this model.
    """
    if not hasattr(encoder.backbone, "set_input_size"):
        raise UsageError(
            f"timm cannot resample the positions of '{encoder.name}': its weights are for {side} "
            f"pixels, so set image_size={side}."
        )
    # The weights are replaced: their draws must not move the generator that others use.
    with torch.random.fork_rng(devices=[]):
        return create_encoder(encoder.name, image_size=side)


def resample(source: Encoder, image_size: int) -> dict[str, Tensor]:
    """Change an encoder's input size in place, and return its weights with positions resampled."""
    backbone: Any = source.backbone
    backbone.set_input_size(img_size=(image_size, image_size))
    state: dict[str, Tensor] = backbone.state_dict()
    return state


def _square_root(count: int) -> int | None:
    root = math.isqrt(max(count, 0))
    return root if root > 0 and root * root == count else None
