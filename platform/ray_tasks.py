"""The same work on many items: in threads of this process, or by workers on Ray.

Results come in whatever order they are ready. Callers put each where it belongs, so that neither
threads nor workers show in what they compute.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from echostill.platform import runtime
from echostill.platform.ray_errors import worker_errors

AHEAD = 2  # results per thread that may wait: more would only fill memory
RETRIES = 3  # of an item whose worker was lost, and of a worker

Task = Callable[[Any], Any]


@dataclass(frozen=True)
class TaskPool:
    """Who computes.

    Attributes:
        workers: Ray workers at a time; 0 computes in this process.
        threads: threads of this process, with ``workers`` 0; None for one per CPU.
        address: of the Ray cluster.
        cpus: CPUs that a Ray worker reserves.
        gpus: GPUs that a Ray worker reserves.
        kept: what stays of finished work when a worker fails, and how to go on: ends the error.
    """

    workers: int = 0
    threads: int | None = None
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    kept: str = ""

    @property
    def thread_count(self) -> int:
        """Threads of this process."""
        return self.threads or len(os.sched_getaffinity(0))

    def map(
        self, task: Task, items: Sequence[Any], *, describe: Callable[[Any], str] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Compute ``task(item)`` for every item, each in a Ray task of its own.

        Args:
            task: what is computed; sent to Ray once.
            items: what it is computed of; as many are on their way as there are workers.
            describe: says what is done with an item, to begin an error with.

        Yields:
            The item's number and the result, in any order.

        Raises:
            UsageError: The task refused an item.
            EchostillError: A worker failed, or died more than ``RETRIES`` times.
        """
        if not self.workers:
            return self._here(lambda: task, items)
        return self._over_ray(task, items, describe, keep=False)

    def map_made(
        self,
        make_task: Callable[[], Task],
        items: Sequence[Any],
        *,
        describe: Callable[[Any], str] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """As :meth:`map`, by a task that every worker makes once: a model that is loaded, say.

        A worker that was lost makes it again. The workers end with the iteration.
        """
        if not self.workers:
            return self._here(make_task, items)
        return self._over_ray(make_task, items, describe, keep=True)

    def _here(
        self, make_task: Callable[[], Task], items: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        own = threading.local()

        def compute(item: Any) -> Any:
            if not hasattr(own, "task"):
                own.task = make_task()
            return own.task(item)

        with ThreadPoolExecutor(self.thread_count) as pool:
            waiting: deque[tuple[int, Future[Any]]] = deque()
            try:
                for number, item in enumerate(items):
                    waiting.append((number, pool.submit(compute, item)))
                    if len(waiting) > AHEAD * self.thread_count:
                        first, result = waiting.popleft()
                        yield first, result.result()
                while waiting:
                    first, result = waiting.popleft()
                    yield first, result.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _over_ray(
        self,
        given: Callable[..., Any],
        items: Sequence[Any],
        describe: Callable[[Any], str] | None,
        *,
        keep: bool,
    ) -> Iterator[tuple[int, Any]]:
        runtime.connect_ray(self.address)
        import ray

        actors, idle = self._workers(min(self.workers, len(items)), ray.put(given), keep)
        running: dict[Any, tuple[int, Any]] = {}
        todo = deque(enumerate(items))
        try:
            while todo or running:
                while todo and idle:
                    number, item = todo.popleft()
                    worker = idle.popleft()
                    running[worker(item)] = number, worker
                with worker_errors(kept=self.kept):
                    done, _ = ray.wait(list(running))
                for reference in done:
                    number, worker = running.pop(reference)
                    idle.append(worker)
                    what = "" if describe is None else describe(items[number])
                    with worker_errors(what, self.kept):
                        result = ray.get(reference)
                    yield number, result
        finally:
            if runtime.lost_process() is None:  # without its own processes Ray would only wait
                for reference in running:
                    ray.cancel(reference)  # an actor's too: else Ray would start it again
                for actor in actors:
                    ray.kill(actor)

    def _workers(self, count: int, given: Any, keep: bool) -> tuple[list[Any], deque[Task]]:
        """Start actors, where tasks are kept; return them, and what sends an item to each."""
        import ray

        reserved: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if not keep:
            call = ray.remote(max_retries=RETRIES, **reserved)(_compute)
            return [], deque([partial(call.remote, given)] * count)
        kind: Any = ray.remote(max_restarts=RETRIES, max_task_retries=RETRIES, **reserved)(_Worker)
        actors = [kind.remote() for _ in range(count)]
        # In a list Ray leaves it in the object store: a worker takes it out once.
        return actors, deque(partial(actor.compute.remote, [given]) for actor in actors)


def _compute(task: Task, item: Any) -> Any:
    return task(item)


class _Worker:
    """A Ray actor; what it needs comes with its items, so that it can be started again any time."""

    def __init__(self) -> None:
        self._task: Task | None = None

    def compute(self, given: list[Any], item: Any) -> Any:
        import ray

        if self._task is None:
            self._task = ray.get(given[0])()
        return self._task(item)
