"""What training steps gave: their losses and gradient norms, read when they are there.

To read a number from a GPU is to wait for all that was given to it before, and meanwhile it runs
out of work. So a step's numbers are copied beside the work that follows, and read a step later: the
GPU then has the next step to compute. On CPUs, where nothing runs ahead, they are read at once.
"""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from echostill.platform.computing.transfer import fetch
from echostill.platform.errors import EchostillError
from echostill.platform.training.batches import TrainingBatch
from echostill.platform.training.collective import over_workers

Outputs = Sequence[tuple[float, Tensor, Mapping[str, Tensor]]]  # share, loss, values of each part


class NonFiniteLossError(EchostillError):
    """The loss or its gradient is not finite.

    A restart from the last checkpoint would end in the same way, so the run is not restarted.
    """

    def __init__(self, message: str, batch: dict[str, Any]) -> None:
        super().__init__(message)
        self.batch = batch

    def __reduce__(self) -> tuple[type["NonFiniteLossError"], tuple[str, dict[str, Any]]]:
        return NonFiniteLossError, (str(self), self.batch)


@dataclass(frozen=True)
class LoggedValues:
    """Values of a logged step, combined over parts and workers, on the device."""

    scalars: dict[str, Tensor]
    each: dict[str, Tensor]  # (n,) of this worker's images
    clipped: dict[str, tuple[Tensor, int]]  # by member: clipped steps, and of how many


def logged_values(outputs: Outputs, clipped: dict[str, tuple[Tensor, int]]) -> LoggedValues:
    """Combine what the parts of a step gave; every worker must call it."""
    scalars = {"loss": sum((share * loss for share, loss, _ in outputs), torch.zeros(()))}
    each: dict[str, Tensor] = {}
    for name, value in outputs[0][2].items():
        if value.ndim:
            each[name] = torch.cat([metrics[name] for _, _, metrics in outputs])
        else:
            scalars[name] = sum(
                (share * metrics[name] for share, _, metrics in outputs), torch.zeros(())
            )
    scalars = {name: over_workers(value, "sum") for name, value in scalars.items()}
    return LoggedValues(scalars, each, clipped)


@dataclass(frozen=True)
class ReadValues:
    """Values of a logged step in this process."""

    scalars: dict[str, float]  # summed over workers
    each: dict[str, Tensor]  # (n,) of this worker's images
    norms: dict[str, float]
    clipped: dict[str, float]  # share of steps, by member


class StepMeasures:
    """What one step gave, until it is read."""

    def __init__(
        self,
        batch: TrainingBatch,
        outputs: Outputs,
        norms: Mapping[str, Tensor],
        logged: LoggedValues | None,
    ) -> None:
        """Start to copy it.

        Args:
            batch: This worker's batch, for the names of its images.
            outputs: What its parts gave.
            norms: Gradient norm of each member.
            logged: Where the step is logged.
        """
        self.step = batch.step
        self.logged = logged is not None
        self._batch = replace(batch, pixels=torch.empty(0), draws=None, crops=None)
        self._members: dict[str, int] = {}
        together = torch.stack([norm.detach() for norm in norms.values()])
        wanted = {"finite": torch.isfinite(together).all()}
        wanted |= {f"loss {part}": loss for part, (_, loss, _) in enumerate(outputs)}
        if logged is not None:
            self._members = {name: steps for name, (_, steps) in logged.clipped.items()}
            wanted |= {f"scalar {name}": value for name, value in logged.scalars.items()}
            wanted |= {f"each {name}": value for name, value in logged.each.items()}
            wanted |= {f"norm {name}": norm for name, norm in norms.items()}
            wanted |= {f"clipped {name}": count for name, (count, _) in logged.clipped.items()}
        self._parts = len(outputs)
        self._returning = {name: fetch(value.detach()) for name, value in wanted.items()}

    def is_finite(self) -> bool:
        """Return whether the gradient is finite on all workers."""
        return bool(self._returning["finite"].tensor())

    def values(self) -> ReadValues:
        """Return the values of a logged step."""
        found = {name: value.tensor() for name, value in self._returning.items()}

        def named(kind: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(kind): value
                for name, value in found.items()
                if name.startswith(kind)
            }

        return ReadValues(
            {name: float(value) for name, value in named("scalar ").items()},
            named("each "),
            {name: float(value) for name, value in named("norm ").items()},
            {name: float(count) / self._members[name] for name, count in named("clipped ").items()},
        )

    def error(self, seed: int, rank: int, size: int) -> NonFiniteLossError:
        """Say which step was not finite, and of what images."""
        found = {name: value.tensor() for name, value in self._returning.items()}
        batch = self._batch
        losses = [float(found[f"loss {part}"]) for part in range(self._parts)]
        broken = [loss for loss in losses if not math.isfinite(loss)]
        what = f"the loss became {broken[0]}" if broken else "the gradient is not finite"
        message = (
            f"{what} at step {self.step + 1}; images of that batch: "
            f"{', '.join(batch.image_ids[:8])}... Lower training.learning_rate or look at them."
        )
        record = {
            "message": message,
            "step": self.step + 1,
            "seed": seed,
            "worker": rank,
            "workers": size,
            "losses": [str(loss) for loss in losses],
            "image_ids": batch.image_ids,
            "epochs": [int(epoch) for epoch in batch.epochs],
        }
        return NonFiniteLossError(message, record)


class Unread:
    """Steps whose numbers are not read yet, oldest first."""

    def __init__(self, late: int) -> None:
        """Let so many steps wait to be read."""
        self.late = late
        self._steps: deque[StepMeasures] = deque()

    def add(self, measures: StepMeasures) -> list[StepMeasures]:
        """Add a step; return those whose turn it is to be read."""
        self._steps.append(measures)
        return [self._steps.popleft() for _ in range(len(self._steps) - self.late)]

    def rest(self) -> list[StepMeasures]:
        """Return all that are left, as before a checkpoint."""
        found, self._steps = list(self._steps), deque()
        return found
