"""Losses of images and tokens put together under the weight of consistency."""

from collections.abc import Sequence

import torch
from torch import Tensor


def averaged(rows: Sequence[Tensor], images: int) -> tuple[Tensor, ...]:
    """Divide losses by the number of blocks times views, so that their sum is the mean.

    Args:
        rows: By block, (B,), (V B,) or (V B, N).
        images: B.
    """
    count = sum(len(each) // images for each in rows)
    return tuple(rows) if count == 1 else tuple(each / count for each in rows)


def add_up(rows: Sequence[Tensor], images: int) -> Tensor:
    """Add up the losses of matched blocks, then those of the views.

    Args:
        rows: By block, (B,), (V B,) or (V B, N).
        images: B.

    Returns:
        (B,) or (B, N).
    """
    return _add_views(sum(rows[1:], rows[0]), images)


def weigh(
    rows: Sequence[Tensor], whole: Tensor, weight: Tensor, *, by_block: bool = False
) -> Tensor:
    """Multiply losses by the weight of their image or token.

    Args:
        rows: By block, (B,), (V B,) or (V B, N).
        whole: Their sum from :func:`add_up`, (B,) or (B, N).
        weight: (L, B), or (L, B, N) by token.
        by_block: Whether block l has weight l, where there are several; else every block has the
            mean of the weights.

    Returns:
        The shape of ``whole``.
    """
    if by_block and len(weight) > 1:
        own = [_add_views(each, len(whole)) for each in rows]
        weighted = [_fit(one, each) * each for one, each in zip(weight, own, strict=True)]
        return torch.stack(weighted).sum(dim=0)
    return _fit(weight.mean(dim=0), whole) * whole


def by_image(rows: Tensor) -> Tensor:
    """Take the mean over tokens: (B,) or (B, N) to (B,)."""
    return rows.mean(dim=1) if rows.ndim == 2 else rows


def mean_by_image(values: Tensor) -> Tensor:
    """Take the mean over blocks and tokens: (L, B) or (L, B, N) to (B,)."""
    return by_image(values[0] if len(values) == 1 else values.mean(dim=0))


def _add_views(rows: Tensor, images: int) -> Tensor:
    views = torch.split(rows, images)
    return sum(views[1:], views[0])


def _fit(weight: Tensor, rows: Tensor) -> Tensor:
    """Bring a weight, (B,) or (B, N), to the shape of what it weighs, (B,) or (B, tokens)."""
    if rows.ndim == 1:
        return by_image(weight)
    if weight.ndim == 1:
        return weight[:, None]
    prefix = rows.shape[1] - weight.shape[1]
    if not prefix:
        return weight
    # Prefix tokens have no weight of their own: they take that of their image.
    return torch.cat([weight.mean(dim=1, keepdim=True).expand(-1, prefix), weight], dim=1)
