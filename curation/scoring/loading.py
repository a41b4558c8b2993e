"""Decoding of a shard in Ray tasks, piece by piece, ahead of the worker that computes it.

A GPU scores images faster than a few threads of its own process decode them. Each task decodes some
batches, on any node that has a CPU free; a worker has a bounded number of tasks on their way and
takes the results in order, so that it computes from the first piece on.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from echostill.curation.scoring.decoding import Batch, PartDecoder

PIECE_ROWS = 256  # of a task, rounded up to whole batches


@dataclass(frozen=True)
class TaskDecoder:
    """Begins to decode shards for one worker.

    Attributes:
        decoder: What a task decodes with.
        tasks: Pieces of a shard that may be on their way at a time.
    """

    decoder: PartDecoder
    tasks: int

    def __call__(self, payload: Sequence[str | int]) -> "DecodedAhead":
        """Begin to decode a shard; its batches come from the result."""
        return DecodedAhead(self, self.decoder.rows(payload))


class DecodedAhead:
    """The batches of a shard, which are decoded elsewhere meanwhile; iterated once.

    Attributes:
        seconds: What the tasks took so far, together.
    """

    def __init__(self, settings: TaskDecoder, rows: pa.Table) -> None:
        """Begin with the first pieces."""
        import ray

        self.seconds = 0.0
        self._decoder, self._rows, self._next = settings.decoder, rows, 0
        size = settings.decoder.batch_size
        self._piece = -(-PIECE_ROWS // size) * size
        self._task: Any = ray.remote(num_cpus=1)(_decode)
        self._running: deque[Any] = deque()
        for _ in range(settings.tasks):
            self._submit()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order."""
        import ray

        while self._running:
            batches, seconds = ray.get(self._running.popleft())
            self._submit()
            self.seconds += seconds
            yield from batches

    def _submit(self) -> None:
        """Send the next piece, if any is left."""
        piece = self._rows.slice(self._next, self._piece)
        if piece.num_rows:
            self._next += piece.num_rows
            # Taken out: a slice would be sent with all the rows that it was cut from.
            own = piece.take(pa.array(range(piece.num_rows)))
            self._running.append(self._task.remote(self._decoder, own))


def _decode(decoder: PartDecoder, rows: pa.Table) -> tuple[list[Batch], float]:
    """Decode a piece; the task."""
    started = time.perf_counter()
    batches = list(decoder.decoded(rows))
    return batches, time.perf_counter() - started
