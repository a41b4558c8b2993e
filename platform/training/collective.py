"""Data-parallel workers, and values of the whole batch that they put together.

With a single worker every function returns what it was given.
"""

from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainingWorker:
    """One of the data-parallel workers of a run: its rank, how many there are, its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def workers() -> int:
    """Return how many data-parallel workers there are."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def over_workers(values: Tensor, operation: Literal["sum", "max", "min"]) -> Tensor:
    """Combine values of all workers, elementwise; every worker must call it."""
    if workers() == 1:
        return values
    combined = values.clone()
    torch.distributed.all_reduce(
        combined, op=getattr(torch.distributed.ReduceOp, operation.upper())
    )
    return combined


def in_batch_order(rows: Tensor) -> Tensor:
    """Gather the rows of all workers in the order of the global batch.

    Worker r of W holds the rows r, r + W, r + 2 W, ... (see ``sampling.worker_share``). Every
    worker must call it.

    Args:
        rows: (n, ...) this worker's rows, detached.

    Returns:
        (B, ...) on the CPU.
    """
    own = rows.cpu()
    size = workers()
    if size == 1:
        return own
    shares: list[Tensor | None] = [None] * size
    torch.distributed.all_gather_object(shares, own)
    gathered = cast(list[Tensor], shares)
    whole = own.new_empty((sum(len(share) for share in gathered), *own.shape[1:]))
    for rank, share in enumerate(gathered):
        whole[rank::size] = share
    return whole
