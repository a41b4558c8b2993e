"""Batches of a training run: drawn, read and augmented; beside a GPU in threads, ahead of use.

The images of a batch and their views are a function of (seed, epoch, image id, view) alone, so any
batch can be made again: see :func:`replay`. Beside a GPU threads only read the staged bytes into
pinned memory, and the crops are cut there (``augment.cut_out``).
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from echostill.platform.errors import UsageError, nearest
from echostill.platform.training.augment import AugmentSettings, augment, crops_of, cut_out
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.sampling import Draw, draw, draw_weighted, worker_share
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages

LOADERS = 8  # threads beside a GPU at most; more would wait for Python's lock


class Draws(Protocol):
    """What a task drew for the images of a batch, in tensors with a row for each."""

    def rows(self, start: int, end: int) -> "Draws":
        """Return the part of some of the images."""
        ...

    def to(self, device: torch.device) -> "Draws":
        """Return it on a device; from pinned memory, without waiting for it."""
        ...

    def pinned(self) -> "Draws":
        """Return it in pinned memory."""
        ...


@dataclass
class TrainingBatch:
    """Images of a step on one worker.

    Where ``crops`` are there they are yet to be cut out: ``pixels`` are then whole staged images,
    (B, C, side, side) uint8, and :meth:`to` cuts them where the batch goes.
    """

    pixels: Tensor  # (B, 3, S, S) float in [0, 1], augmented
    image_ids: list[str]
    epochs: np.ndarray  # (B,) int64, the epoch each image belongs to, or its view where they repeat
    draws: Any = None  # what the task drew for these images, see ``TrainingTask.draw``
    step: int = 0  # counted from 0
    crops: Tensor | None = None  # (B, 2, S) see ``augment.crop_positions``

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device) -> "TrainingBatch":
        """Return the batch on a device, its crops cut out; from pinned memory, without waiting."""
        pixels = self.pixels.to(device, non_blocking=True)
        draws = None if self.draws is None else self.draws.to(device)
        if self.crops is not None:
            crops = self.crops.to(device, non_blocking=True)
            pixels = cut_out(pixels, crops).expand(-1, 3, -1, -1)
        return replace(self, pixels=pixels, draws=draws, crops=None)

    def pinned(self) -> "TrainingBatch":
        """Return the batch in pinned memory, from which a GPU copies while others compute."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            draws=None if self.draws is None else self.draws.pinned(),
            crops=None if self.crops is None else self.crops.pin_memory(),
        )


def cuts_on_device(settings: TrainingSettings, device: torch.device) -> bool:
    """Return whether crops are cut on the device that trains."""
    if settings.crops_on == "auto":
        return device.type == "cuda"
    return settings.crops_on == "device"


def loader_threads(settings: TrainingSettings, device: torch.device) -> int:
    """Return how many threads of a worker make batches ahead.

    On CPUs none: one more thread than cores holds up all that compute, for longer than the making
    of a batch takes. Beside a GPU as many as the worker has CPUs, up to ``LOADERS``.
    """
    if settings.loaders is not None:
        return settings.loaders
    return min(LOADERS, torch.get_num_threads()) if device.type == "cuda" else 0


def whole_draw(images: StagedImages, settings: TrainingSettings, seed: int, step: int) -> Draw:
    """Return the images of the global batch of a step, over all workers."""
    seen = step * settings.batch_size
    if settings.balance == "weighted":
        weights = np.array([settings.organ_weights.get(organ, 1.0) for organ in images.organs])
        return draw_weighted(seed, weights, seen, settings.batch_size)
    strata = images.organ_codes if settings.balance == "organ" else None
    return draw(seed, len(images), seen, settings.batch_size, strata)


def make_batch(
    images: StagedImages,
    settings: TrainingSettings,
    seed: int,
    image_size: int,
    step: int,
    worker: TrainingWorker,
) -> TrainingBatch:
    """Draw and read this worker's share of the batch of a step; augment it, on CPUs."""
    share = worker_share(whole_draw(images, settings, seed, step), worker.rank, worker.size)
    whole = cuts_on_device(settings, worker.device)
    made = assemble(images, share, settings, seed, image_size, whole=whole)
    return replace(made, step=step)


def assemble(
    images: StagedImages,
    drawn: Draw,
    settings: TrainingSettings,
    seed: int,
    image_size: int,
    *,
    whole: bool = False,
) -> TrainingBatch:
    """Read and augment drawn images, as a run with these settings and this seed sees them."""
    views = settings.views(drawn.epochs)
    seed = settings.seed_of_views(seed)
    make = whole_batch if whole else view_batch
    return make(images, drawn.rows, views, image_size, seed, settings.augment)


def whole_batch(
    images: StagedImages,
    rows: np.ndarray,
    views: np.ndarray,
    image_size: int,
    seed: int,
    settings: AugmentSettings,
) -> TrainingBatch:
    """As :func:`view_batch`, with the crops yet to be cut out of whole images."""
    pixels = torch.from_numpy(images.pixels[rows])
    ids = [images.image_ids[row] for row in rows]
    crops = crops_of(ids, views, pixels.shape[-1], image_size, seed, settings)
    return TrainingBatch(pixels, ids, views, crops=crops)


def view_batch(
    images: StagedImages,
    rows: np.ndarray,
    views: np.ndarray,
    image_size: int,
    seed: int,
    settings: AugmentSettings,
) -> TrainingBatch:
    """Read images by row and augment them: each view depends on (seed, view, image id) alone."""
    pixels = torch.from_numpy(images.pixels[rows].astype(np.float32) / 255)
    ids = [images.image_ids[row] for row in rows]
    pixels = augment(pixels, ids, views, image_size, seed, settings)
    return TrainingBatch(pixels.expand(-1, 3, -1, -1), ids, views)


def replay(
    images: StagedImages,
    settings: TrainingSettings,
    seed: int,
    image_size: int,
    image_ids: Sequence[str],
    epochs: Sequence[int],
) -> TrainingBatch:
    """Make again the views that training saw of some images in some epochs.

    Args:
        images: Staged images of the run.
        settings: Settings of the run.
        seed: Seed of the run.
        image_size: Input side of the run's model in pixels.
        image_ids: The images, as a saved batch names them.
        epochs: The epoch of each, or its view where they repeat.

    Raises:
        UsageError: An image is not among the staged ones.
    """
    position = {image_id: row for row, image_id in enumerate(images.image_ids)}
    for image_id in image_ids:
        if image_id not in position:
            hint = nearest(image_id, images.image_ids)
            raise UsageError(f"image '{image_id}' is not one of the run's images.{hint}")
    rows = np.array([position[image_id] for image_id in image_ids], dtype=np.int64)
    drawn = Draw(rows, np.asarray(epochs, dtype=np.int64))
    return assemble(images, drawn, settings, seed, image_size)


def cut(batch: TrainingBatch, parts: int) -> list[TrainingBatch]:
    """Cut a batch into parts whose sizes differ by one at most; one part is the batch itself."""
    if parts == 1:
        return [batch]
    edges = [len(batch) * part // parts for part in range(parts + 1)]
    return [
        TrainingBatch(
            batch.pixels[start:end],
            batch.image_ids[start:end],
            batch.epochs[start:end],
            None if batch.draws is None else batch.draws.rows(start, end),
            batch.step,
            None if batch.crops is None else batch.crops[start:end],
        )
        for start, end in itertools.pairwise(edges)
    ]


@dataclass
class Waiting:
    """How long the trainer waited for batches, in seconds."""

    seconds: float = 0.0


STARVED = 0.2  # share of the time from which on a key is named


class Pace:
    """How many images a run sees in a second, and how much of the time it waits for them."""

    def __init__(self, settings: TrainingSettings, device: torch.device, step: int) -> None:
        """Start the clock.

        Args:
            settings: Of the run.
            device: On which it computes.
            step: Steps that were done before.
        """
        self.waiting = Waiting()
        self._settings, self._device = settings, device
        self._start = self._last = self._now(step)

    def so_far(self, step: int) -> dict[str, float]:
        """Return images per second and the share of waiting since the start."""
        return self._between(self._start, self._now(step))

    def note(self, step: int, every: float = 0.0) -> str | None:
        """Say both for the time since the last note, and which key to turn where a run starves.

        Args:
            step: Steps that are done.
            every: Seconds that must lie between notes, else there is None.
        """
        now = self._now(step)
        if now[0] - self._last[0] < every:
            return None
        found, self._last = self._between(self._last, now), now
        said = f"{found['images_per_second']:.0f} images/s"
        share = found["data_wait_share"]
        said += f", {share:.0%} of the time waiting for images"
        if share >= STARVED:
            threads = loader_threads(self._settings, self._device)
            said += (
                f": raise training.loaders (now {threads}) or set ECHOSTILL_CACHE to a fast disk"
            )
        return said

    def _now(self, step: int) -> tuple[float, int, float]:
        return time.perf_counter(), step, self.waiting.seconds

    def _between(
        self, before: tuple[float, int, float], now: tuple[float, int, float]
    ) -> dict[str, float]:
        seconds = max(now[0] - before[0], 1e-9)
        return {
            "images_per_second": (now[1] - before[1]) * self._settings.batch_size / seconds,
            "data_wait_share": (now[2] - before[2]) / seconds,
        }


Made = TypeVar("Made")


def prefetch(
    make: Callable[[int], Made],
    steps: range,
    depth: int = 2,
    waiting: Waiting | None = None,
    threads: int = 1,
) -> Iterator[Made]:
    """Make batches in threads ahead of their use, and give them in order.

    Args:
        make: Makes the batch of a step; called from several threads where there are several.
        steps: The steps.
        depth: Batches that are ready, besides one in the hands of each thread.
        waiting: Counts the time in which none was ready.
        threads: Threads; without one, each batch is made when it is asked for.
    """
    waiting = waiting or Waiting()
    if not threads:
        for step in steps:
            started = time.perf_counter()
            made = make(step)
            waiting.seconds += time.perf_counter() - started
            yield made
        return
    todo = iter(steps)
    ready: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="echostill-batches")
    try:
        for step in itertools.islice(todo, depth + threads):
            ready.append(pool.submit(make, step))
        while ready:
            started = time.perf_counter()
            made = ready.popleft().result()  # raises what its making raised
            waiting.seconds += time.perf_counter() - started
            for step in itertools.islice(todo, 1):
                ready.append(pool.submit(make, step))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)
