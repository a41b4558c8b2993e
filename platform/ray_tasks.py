"""The same function over many pieces of a table: in threads of this process, or over Ray.

Results come in whatever order they are ready. Callers put each where it belongs, so that neither
threads nor workers show in what they compute.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import faiss

from echostill.platform import runtime
from echostill.platform.errors import EchostillError

AHEAD = 2  # results per thread or worker that may wait: more would only fill memory


@dataclass(frozen=True)
class Crew:
    """Who computes.

    Attributes:
        workers: Ray tasks at a time; 0 computes in this process.
        threads: threads of this process, with ``workers`` 0; None for one per CPU.
        address: of the Ray cluster.
    """

    workers: int = 0
    threads: int | None = None
    address: str | None = None

    @property
    def thread_count(self) -> int:
        """Threads of this process."""
        return self.threads or len(os.sched_getaffinity(0))

    def map(
        self, task: Callable[[Any], Any], arguments: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        """Compute ``task(argument)`` for every argument.

        Yields:
            The argument's number and the result, in any order.

        Raises:
            EchostillError: A worker died or failed; what the task itself refuses is passed on.
        """
        return self._over_ray(task, arguments) if self.workers else self._here(task, arguments)

    def _here(
        self, task: Callable[[Any], Any], arguments: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        # Each thread computes alone: threads inside FAISS would wait for each other's blocks.
        with ThreadPoolExecutor(
            self.thread_count, initializer=faiss.omp_set_num_threads, initargs=(1,)
        ) as pool:
            waiting: deque[tuple[int, Any]] = deque()
            try:
                for number, argument in enumerate(arguments):
                    waiting.append((number, pool.submit(task, argument)))
                    if len(waiting) > AHEAD * self.thread_count:
                        first, result = waiting.popleft()
                        yield first, result.result()
                while waiting:
                    first, result = waiting.popleft()
                    yield first, result.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _over_ray(
        self, task: Callable[[Any], Any], arguments: Sequence[Any]
    ) -> Iterator[tuple[int, Any]]:
        runtime.connect(self.address)
        import ray

        remote = ray.remote(num_cpus=1, max_retries=3)(_call)
        shared = ray.put(task)
        running: dict[Any, int] = {}
        todo = deque(enumerate(arguments))
        try:
            while todo or running:
                while todo and len(running) < self.workers:
                    number, argument = todo.popleft()
                    running[remote.remote(shared, argument)] = number
                done, _ = ray.wait(list(running))
                for reference in done:
                    number = running.pop(reference)
                    yield number, ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EchostillError):
                raise error.cause from None
            raise EchostillError(f"a worker failed: {error.cause or error}") from error
        except ray.exceptions.RayError as error:
            raise EchostillError(f"a worker died: {type(error).__name__}: {error}") from error
        finally:
            for reference in running:
                ray.cancel(reference)


def _call(task: Callable[[Any], Any], argument: Any) -> Any:
    faiss.omp_set_num_threads(1)
    return task(argument)
