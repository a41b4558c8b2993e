"""Student and teacher on one grid of patch tokens, each shown the views at its own input size.

Tokens are matched on the student's final grid. A teacher with other patches, or with stages that
halve the grid, gives tokens on other grids, and so may the student's own stages: these are
resampled. Where the grids are equal nothing is touched.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from echostill.distill.objective.outputs import Needs, ViewOutputs
from echostill.platform.errors import UsageError
from echostill.platform.models import Encoder
from echostill.platform.models.shapes import Grid


def check_grids(student: Encoder, teacher: Encoder, needs: Needs) -> None:
    """See that what is needed of the teacher can be brought to the student's grid.

    Args:
        student: The student's encoder.
        teacher: The teacher.
        needs: What the terms need of it.

    Raises:
        UsageError: It cannot; says why and what to do.
    """
    grid = student.patch_grid()
    if needs.tokens:
        teacher.patch_grid()
    if needs.attention and teacher.grid != grid:
        found = "no grid" if teacher.grid is None else f"{teacher.grid[0]} x {teacher.grid[1]}"
        raise UsageError(
            f"attention of '{student.name}' is over {grid[0]} x {grid[1]} patches and that of "
            f"'{teacher.name}' over {found}: it cannot be resampled, so match tokens instead "
            "(attention_weight=0 relation_weight=0), or choose input sizes that give equal grids."
        )


def on_grid(outputs: ViewOutputs, encoder: Encoder, grid: Grid) -> ViewOutputs:
    """Bring all patch tokens of an encoder's outputs to a grid."""
    tokens = outputs.tokens
    if tokens is not None:
        tokens = resample_tokens(tokens, encoder.patch_grid(), grid)
    blocks = {
        block: resample_tokens(own, encoder.layer(block).grid, grid)
        for block, own in outputs.blocks.items()
    }
    return replace(outputs, tokens=tokens, blocks=blocks)


def resample_tokens(tokens: Tensor, grid: Grid, wanted: Grid) -> Tensor:
    """Resample patch tokens from one grid to another: bilinear, antialiased towards a coarser one.

    As products with the interpolation's own weights: the backward pass of torch's interpolation is
    not deterministic on GPUs.

    Args:
        tokens: (B, rows * columns, D), row by row.
        grid: Rows and columns of the tokens.
        wanted: Rows and columns wanted.

    Returns:
        (B, rows * columns of the wanted grid, D); the tokens themselves where the grids are equal.
    """
    if grid == wanted:
        return tokens
    rows, columns = (
        _weights(*sides).to(tokens.device, tokens.dtype) for sides in zip(grid, wanted, strict=True)
    )
    spread = tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])
    return torch.einsum("pr,qc,brcd->bpqd", rows, columns, spread).flatten(1, 2)


@lru_cache
def _weights(side: int, wanted: int) -> Tensor:
    """Weights (wanted, side) of each position of a line in each position of the resampled line."""
    with torch.inference_mode(False):  # kept for passes that have gradients
        line = torch.eye(side, dtype=torch.float64, device="cpu")[None, :, None, :]
        resampled = functional.interpolate(
            line.expand(-1, -1, side, -1),
            (side, wanted),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        return resampled[0, :, 0, :].T.contiguous()
