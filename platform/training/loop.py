"""The training loop shared by pretraining, the proxy and distillation.

A :class:`TrainingTask` owns its models and its loss. The loop owns the optimiser, the schedule, the
order of the images and the checkpoint; it does not depend on Ray (see ``training.ray``).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from echostill.platform.computing.precision import (
    autocast,
    computing_type,
    exact_float32,
    gradient_scaler,
)
from echostill.platform.training.batches import (
    Draws,
    TrainingBatch,
    Waiting,
    cut,
    loader_threads,
    make_batch,
    prefetch,
    whole_draw,
)
from echostill.platform.training.collective import TrainingWorker, in_batch_order
from echostill.platform.training.measures import StepMeasures, Unread, logged_values
from echostill.platform.training.optimisation import (
    SKIPPED_STEPS,
    GradientClip,
    MovingAverage,
    deterministic,
    make_optimiser,
    parameter_groups,
    set_rate,
)
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages


class TrainingTask(nn.Module):
    """A model with its loss.

    A step calls :meth:`prepare` once with all parts of a worker's batch, then ``forward`` with each
    part, so that what belongs to the whole batch does not depend on how it is cut.
    """

    image_size: int

    def draw(self, batch: TrainingBatch) -> Draws | None:
        """Draw what the task needs for a batch besides crops, where the batch is made.

        Returns:
            What was drawn for each image, or None where nothing is.
        """
        return None

    def prepare(self, batches: Sequence[TrainingBatch]) -> list[Any]:
        """Compute, for each part, what depends on the whole batch; without gradients."""
        return [None] * len(batches)

    def forward(
        self, batch: TrainingBatch, prepared: Any = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of a batch.

        Returns:
            The mean loss and named values for the log: scalars, which are averaged over the global
            batch, or (B,) values of each image, which :meth:`summarise` turns into scalars.
        """
        raise NotImplementedError(type(self).__name__)

    def summarise(
        self, images: Mapping[str, Tensor], groups: Mapping[str, Sequence[str]], totals: "Totals"
    ) -> dict[str, float]:
        """Turn values of each image of the global batch into scalars, on every worker.

        Args:
            images: What ``forward`` returned per image, (B,) each, in the order of the batch.
            groups: The organ and the device of each image, where they are known.
            totals: Sums over the whole run, to add to.
        """
        return {}

    def compiled(self) -> list[nn.Module]:
        """Return the modules that ``torch.compile`` should compile, where it is asked for."""
        return [self]

    def members(self) -> dict[str, nn.Module]:
        """Name the modules that are trained side by side; each is clipped alone.

        The names of a member's logged values begin with its key.
        """
        return {"": self}


class Totals(dict[str, list[float]]):
    """Named sums over the logged steps of a run: how many values, and their sum."""

    def add(self, name: str, values: Tensor) -> None:
        """Add values to a sum."""
        known = self.setdefault(name, [0.0, 0.0])
        known[0] += len(values)
        known[1] += float(values.double().sum())

    def means(self) -> dict[str, float]:
        """Return the mean of each sum."""
        return {name: total / count for name, (count, total) in self.items() if count}


@dataclass
class TrainingState:
    """Everything a restart needs besides the task's own weights."""

    step: int = 0
    optimiser: dict[str, Any] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    average: dict[str, Tensor] | None = None  # the averaged weights
    scaler: dict[str, Any] | None = None  # of float16 gradients
    totals: Totals = field(default_factory=Totals)
    norms: dict[str, tuple[float, float]] = field(default_factory=dict)  # see GradientClip
    precisions: list[tuple[int, str]] = field(default_factory=list)  # (steps before it, type)

    def computes_in(self, kind: str) -> None:
        """Note the type of matrix products from here on; it may change where a run is continued."""
        if not self.precisions or self.precisions[-1][1] != kind:
            self.precisions.append((self.step, kind))


def train(
    task: TrainingTask,
    model: nn.Module,
    images: StagedImages,
    settings: TrainingSettings,
    seed: int,
    state: TrainingState,
    worker: TrainingWorker,
    on_checkpoint: Callable[[TrainingState], None],
    *,
    leaving: Callable[[], bool] = lambda: False,
    on_logged: Callable[[int], None] = lambda step: None,
    waiting: Waiting | None = None,
    late: int | None = None,
) -> TrainingState:
    """Train from the step of ``state`` until ``settings.steps``.

    Args:
        task: The task, for its image size and parameters.
        model: What is called with a batch: the task itself, or its data-parallel wrapper.
        images: Staged training images.
        settings: Optimiser, schedule, pace.
        seed: Seed of order, crops and masks.
        state: Start of this run, or what a checkpoint held.
        worker: This worker's rank and device.
        on_checkpoint: Called on every worker after each checkpoint step.
        leaving: Asked on every worker at each logged step: whether a node is about to be taken
            away, so that a checkpoint should be written now. All workers must get the same answer.
        on_logged: Called on every worker after each logged step, with the number of steps done.
        waiting: Counts the time this worker waits for batches.
        late: After how many more steps the numbers of a step are read; default 1 on GPUs, which
            would wait for work otherwise, and 0 on CPUs.

    Raises:
        NonFiniteLossError: The loss or its gradient is not finite; names the images of that batch.
            No checkpoint holds that step.
        UsageError: The device does not have the precision.
    """
    if settings.deterministic:
        deterministic()
    kind = computing_type(settings.precision, worker.device)
    if kind == torch.float32:
        exact_float32()
    state.computes_in(str(kind).removeprefix("torch."))
    optimiser = make_optimiser(
        parameter_groups(task, settings.weight_decay, settings.layer_decay),
        settings.betas,
        worker.device,
        state.optimiser,
    )
    average = MovingAverage(task, settings.ema) if settings.ema else None
    if average is not None and state.average is not None:
        average.load(state.average)
    scaler = gradient_scaler(settings.precision, worker.device)
    if state.scaler is not None:
        scaler.load_state_dict(state.scaler)
    members = {
        name: [p for p in member.parameters() if p.requires_grad]
        for name, member in task.members().items()
    }
    relative = settings.clipping == "relative"
    clip = GradientClip(settings.gradient_clip, relative=relative, norms=state.norms)
    stops = set(settings.checkpoint_steps())
    if late is None:
        late = 1 if worker.device.type == "cuda" else 0
    unread = Unread(late)
    skipped, saved = 0, False
    task.train()
    todo = range(state.step, settings.steps)

    def make(step: int) -> TrainingBatch:
        batch = make_batch(images, settings, seed, task.image_size, step, worker)
        batch.draws = task.draw(batch)
        return batch.pinned() if worker.device.type == "cuda" else batch

    def read(steps: Sequence[StepMeasures]) -> None:
        nonlocal skipped
        for measures in steps:
            skipped = 0 if measures.is_finite() else skipped + 1
            if skipped and (not scaler.is_enabled() or skipped > SKIPPED_STEPS):
                state.step = measures.step
                raise measures.error(seed, worker.rank, worker.size)
            if measures.logged:
                row = _row(task, images, settings, seed, worker, measures, state.totals)
                if measures.step + 1 in stops:
                    row |= state.totals.means()
                state.history.append(row)

    batches = prefetch(make, todo, waiting=waiting, threads=loader_threads(settings, worker.device))
    for step, batch in zip(todo, batches, strict=True):
        set_rate(optimiser, settings.rate_at(step))
        parts = cut(batch.to(worker.device), _parts(settings, worker))
        with autocast(worker.device, kind):
            prepared = task.prepare(parts)
        outputs = []
        for number, (part, known) in enumerate(zip(parts, prepared, strict=True), start=1):
            with _gradients_stay(model, number < len(parts)):
                with autocast(worker.device, kind):
                    loss, metrics = model(part, known)
                # The data-parallel mean weighs every worker alike: correct for unequal shares of
                # the batch. A loss that is not finite must make the gradients of all workers
                # non-finite, so that they stop at the same step.
                share = len(part) * worker.size / settings.batch_size
                finite = torch.isfinite(loss.detach())
                scaler.scale(loss * torch.where(finite, share, math.nan)).backward()
            outputs.append((share, loss.detach(), metrics))
        scaler.unscale_(optimiser)
        norms = {name: clip(name, parameters) for name, parameters in members.items()}
        logged = (step + 1) % settings.log_every == 0 or step + 1 in stops or step == 0
        values = logged_values(outputs, clip.take_counts()) if logged else None
        # Where steps are read at once, one that is not finite is not taken.
        read(unread.add(StepMeasures(batch, outputs, norms, values)))
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        state.step = step + 1
        if average is not None:
            average.update(state.step)
        if logged:
            on_logged(state.step)
        warned = logged and not saved and leaving()
        if state.step in stops or warned:
            saved = saved or warned
            read(unread.rest())  # nothing goes into a checkpoint unread
            state.optimiser = optimiser.state_dict()
            state.average = average.values if average is not None else None
            state.scaler = scaler.state_dict() if scaler.is_enabled() else None
            state.norms = clip.norms
            on_checkpoint(state)
    return state


def _parts(settings: TrainingSettings, worker: TrainingWorker) -> int:
    """Number of parts into which a worker cuts its share: the same on all, and none is empty."""
    if settings.micro_batch is None:
        return 1
    largest, smallest = -(-settings.batch_size // worker.size), settings.batch_size // worker.size
    return min(-(-largest // settings.micro_batch), smallest)


def _gradients_stay(model: nn.Module, stay: bool) -> AbstractContextManager[Any]:
    """Put off the exchange of gradients between workers until the last part of a batch."""
    if stay and isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def _row(
    task: TrainingTask,
    images: StagedImages,
    settings: TrainingSettings,
    seed: int,
    worker: TrainingWorker,
    measures: StepMeasures,
    totals: Totals,
) -> dict[str, float]:
    """Return the logged values of the global batch of a step."""
    values, step = measures.values(), measures.step
    row = {name: value / worker.size for name, value in values.scalars.items()}
    if values.each:
        each = {name: in_batch_order(own) for name, own in values.each.items()}
        rows = whole_draw(images, settings, seed, step).rows
        groups = {"organ": [images.organs[row] for row in rows]}
        if images.devices:
            groups["device"] = [images.devices[row] for row in rows]
        row |= task.summarise(each, groups, totals)
    row |= {"step": step + 1, "learning_rate": settings.rate_at(step)}
    row |= {f"{name}gradient_norm": norm for name, norm in values.norms.items()}
    row |= {f"{name}clipped_share": share for name, share in values.clipped.items()}
    row["epoch"] = (step + 1) * settings.batch_size / len(images)
    return row
