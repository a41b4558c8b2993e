"""Batches of a training run: drawn, read and augmented in a thread, ahead of their use.

The images of a batch and their views are a function of (seed, epoch, image id, view) alone, so any
batch can be made again: see :func:`replay`.
"""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from echostill.platform.errors import UsageError, nearest
from echostill.platform.training.augment import AugmentSettings, augment
from echostill.platform.training.collective import TrainingWorker
from echostill.platform.training.sampling import Draw, draw, draw_weighted, worker_share
from echostill.platform.training.settings import TrainingSettings
from echostill.platform.training.staging import StagedImages


@dataclass
class TrainingBatch:
    """Images of a step on one worker."""

    pixels: Tensor  # (B, 3, S, S) float in [0, 1], augmented
    image_ids: list[str]
    epochs: np.ndarray  # (B,) int64, the epoch each image belongs to, or its view where they repeat
    draws: Any = None  # what the task drew for these images, see ``TrainingTask.draw``
    step: int = 0  # counted from 0

    def __len__(self) -> int:
        return len(self.image_ids)

    def to(self, device: torch.device) -> "TrainingBatch":
        """Return the batch with its pixels on a device."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))


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
    """Draw, read and augment this worker's share of the batch of a step."""
    share = worker_share(whole_draw(images, settings, seed, step), worker.rank, worker.size)
    return replace(assemble(images, share, settings, seed, image_size), step=step)


def assemble(
    images: StagedImages, drawn: Draw, settings: TrainingSettings, seed: int, image_size: int
) -> TrainingBatch:
    """Read and augment drawn images, as a run with these settings and this seed sees them."""
    views = settings.views(drawn.epochs)
    seed = settings.seed_of_views(seed)
    return view_batch(images, drawn.rows, views, image_size, seed, settings.augment)


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
        )
        for start, end in itertools.pairwise(edges)
    ]


@dataclass
class Waiting:
    """How long the trainer waited for batches, in seconds."""

    seconds: float = 0.0


def prefetch(
    make: Callable[[int], TrainingBatch],
    steps: range,
    depth: int = 2,
    waiting: Waiting | None = None,
) -> Iterator[TrainingBatch]:
    """Make batches in a thread, a few ahead of their use."""
    ready: queue.Queue[TrainingBatch | BaseException] = queue.Queue(depth)
    stop = threading.Event()
    waiting = waiting or Waiting()

    def put(item: TrainingBatch | BaseException) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                if stop.is_set():
                    return
                put(make(step))
        except BaseException as error:  # handed to the consumer, which raises it
            put(error)

    thread = threading.Thread(target=work, daemon=True, name="echostill-batches")
    thread.start()
    try:
        for _ in steps:
            started = time.perf_counter()
            item = ready.get()
            waiting.seconds += time.perf_counter() - started
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
