"""SQL for callers: a few worker processes, a queue for them, and a time limit for every query."""

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from echostill.curation.service.problems import Problem, busy
from echostill.curation.service.sql.fork import ForkedChild, can_fork
from echostill.curation.service.sql.frames import CHUNK, END, FAILURE, HEADER, RESULT

LAST = (RESULT, END, FAILURE)
Child = subprocess.Popen[bytes] | ForkedChild

WORKERS = 2
WAIT_SECONDS = 5.0  # for a free worker
START_SECONDS = 60.0  # for a worker to load its libraries
GRACE_SECONDS = 2.0  # for a worker to end a query, before it is killed
POLL_SECONDS = 0.05  # between checks whether the caller is still connected
READ_BYTES = 2**16


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        sql: the text.
        parameters: values of its ``?``.
        limit: rows at most.
        timeout: seconds at most.
        arrow: whether to answer with an Arrow stream instead of JSON.
        description: the views (``worker.Views``).
    """

    sql: str
    parameters: list[Any]
    limit: int
    timeout: float
    arrow: bool
    description: dict[str, Any]


class SqlPool:
    """A fixed number of workers. Thread-safe."""

    def __init__(self, workers: int = WORKERS, *, forked: bool = False) -> None:
        """Make a pool whose workers start when they are needed.

        Args:
            workers: how many.
            forked: whether they may be copies of this process, so that DuckDB and Arrow are loaded
                once; only where it has one thread at that time.
        """
        self._free: queue.Queue[_Process] = queue.Queue()
        self._closed = False
        for _ in range(workers):
            self._free.put(_Process(forked))

    def run(self, query: Query, disconnected: Callable[[], bool]) -> Generator[bytes, None, None]:
        """Run a query: yield one piece of JSON, or the pieces of an Arrow stream.

        Nothing is yielded before the query has started to answer, so an invalid one raises at once.

        Args:
            query: what to run.
            disconnected: whether the caller has disconnected; checked while waiting.

        Raises:
            Problem: Rejected, failed, too slow, too large, or all workers are busy.
        """
        try:
            process = self._free.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            raise busy("all SQL workers are busy: try again in a moment.") from None
        finished = False
        try:
            for kind, data in process.ask(query, disconnected):
                if kind in LAST:
                    finished = True
                if kind == FAILURE:
                    raise _problem(**json.loads(data))
                if kind in (RESULT, CHUNK):
                    yield data
        finally:
            # A worker interrupted in its answer would send the rest of it to the next caller.
            if not finished:
                process.end()
            self._give_back(process)

    def launch(self) -> None:
        """Start the free workers without waiting until they are ready."""
        for process in self._taken():
            process.launch()
            self._free.put(process)

    def warm(self) -> None:
        """Start the free workers, so that the first query does not wait for one to start."""
        for process in self._taken():
            process.start()
            self._free.put(process)

    def _taken(self) -> "list[_Process]":
        return [self._free.get_nowait() for _ in range(self._free.qsize())]

    def _give_back(self, process: "_Process") -> None:
        if self._closed:
            process.end()
        else:
            self._free.put(process)

    def close(self) -> None:
        """Stop the workers."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._free.get_nowait().end()


class _Process:
    """A worker process, started when it is first needed and after it has ended."""

    def __init__(self, forked: bool = False) -> None:
        self._child: Child | None = None
        self._forked = forked
        self._ready = False
        self._deadline = 0.0
        self._lock = threading.Lock()

    def ask(self, query: Query, disconnected: Callable[[], bool]) -> Iterator[tuple[bytes, bytes]]:
        """Send a query and yield the frames of its answer."""
        child = self.start()
        self._write(child, query.__dict__)
        self._deadline = time.monotonic() + query.timeout + GRACE_SECONDS
        cancelled = False
        for frame in self._frames(child):
            if frame is not None:
                yield frame
                if frame[0] in LAST:
                    return
            elif not cancelled and disconnected():
                cancelled = True
                self._deadline = time.monotonic() + GRACE_SECONDS
                self._write(child, {"cancel": True})

    def _frames(self, child: Child) -> Iterator[tuple[bytes, bytes] | None]:
        """Yield frames; None after each poll without one."""
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        buffer = bytearray()
        while True:
            while len(buffer) >= HEADER.size:
                kind, size = HEADER.unpack_from(buffer)
                if len(buffer) < HEADER.size + size:
                    break
                frame = bytes(buffer[HEADER.size : HEADER.size + size])
                del buffer[: HEADER.size + size]
                yield kind, frame
            ready, _, _ = select.select([descriptor], [], [], POLL_SECONDS)
            if ready:
                piece = os.read(descriptor, READ_BYTES)
                if not piece:
                    raise _problem("memory", "the query needs too much memory.")
                buffer += piece
            elif time.monotonic() > self._deadline:
                raise _problem("timeout", "the query was stopped: timeout.")
            else:
                yield None

    def start(self) -> Child:
        """Start the worker if it is not running, and wait until it is ready."""
        child = self.launch()
        if not self._ready:
            self._deadline = time.monotonic() + START_SECONDS
            for frame in self._frames(child):
                if frame is not None:
                    break
            self._ready = True
        return child

    def launch(self) -> Child:
        """Start the worker if it is not running, without waiting until it is ready."""
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._ready = False
                self._child = _forked() if self._forked and can_fork() else _spawned()
            return self._child

    def _write(self, child: Child, message: dict[str, Any]) -> None:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(message).encode() + b"\n")
            child.stdin.flush()

    def end(self) -> None:
        """Kill the worker; the next query starts a new one."""
        with self._lock:
            if self._child is not None and self._child.poll() is None:
                self._child.kill()
                self._child.wait()
            self._child = None


def _spawned() -> Child:
    """Start a worker afresh; it loads its libraries by itself."""
    return subprocess.Popen(
        [sys.executable, "-m", "echostill.curation.service.sql.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _forked() -> Child:
    """Start a worker that has the libraries of this process."""
    from echostill.curation.service.sql.worker import serve

    return ForkedChild(serve)


def _problem(kind: str, message: str) -> Problem:
    if kind == "timeout":
        return Problem(408, "sql-timeout", message)
    return Problem(400, "sql", message)
