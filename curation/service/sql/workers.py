"""SQL for callers: a few worker processes, queues before them, and an end to every query."""

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from echostill.curation.service.problems import Problem, busy
from echostill.curation.service.sql.worker import CHUNK, END, FAILURE, HEADER, RESULT

LAST = (RESULT, END, FAILURE)

WORKERS = 2
WAIT = 5.0  # seconds that a query may wait for a worker
START = 60.0  # seconds that a worker may take to load its libraries
GRACE = 2.0  # seconds that a worker may take to end a query before it is ended itself
STEP = 0.05  # seconds between looks at the caller
READ = 2**16


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        sql: the text.
        parameters: values of its ``?``.
        limit: rows at most.
        timeout: seconds at most.
        arrow: whether an Arrow stream is wanted in place of JSON.
        description: the views (``sql_worker.Views``).
    """

    sql: str
    parameters: list[Any]
    limit: int
    timeout: float
    arrow: bool
    description: dict[str, Any]


class SqlPool:
    """A fixed number of workers. Safe to share by threads."""

    def __init__(self, workers: int = WORKERS) -> None:
        self._free: queue.Queue[_Process] = queue.Queue()
        self._closed = False
        for _ in range(workers):
            self._free.put(_Process())

    def run(self, query: Query, gone: Callable[[], bool]) -> Iterator[bytes]:
        """Run a query: yield one piece of JSON, or the pieces of an Arrow stream.

        Nothing is sent before the query has begun to answer, so a wrong one raises at once.

        Args:
            query: what to run.
            gone: whether the caller has left; looked at while waiting.

        Raises:
            Problem: Refused, failed, too slow, too large, or all workers are busy.
        """
        try:
            process = self._free.get(timeout=WAIT)
        except queue.Empty:
            raise busy("all SQL workers are busy: try again in a moment.") from None
        finished = False
        try:
            for kind, data in process.ask(query, gone):
                if kind in LAST:
                    finished = True
                if kind == FAILURE:
                    raise _problem(**json.loads(data))
                if kind in (RESULT, CHUNK):
                    yield data
        finally:
            # One that was left in the middle of its answer would give the rest to the next caller.
            if not finished:
                process.end()
            self._give_back(process)

    def warm(self) -> None:
        """Start the workers that are free now, so that no first query waits for it."""
        waiting = [self._free.get_nowait() for _ in range(self._free.qsize())]
        for process in waiting:
            process.start()
            self._free.put(process)

    def _give_back(self, process: "_Process") -> None:
        if self._closed:
            process.end()
        else:
            self._free.put(process)

    def close(self) -> None:
        """End the workers."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._free.get_nowait().end()


class _Process:
    """A worker process, started when it is first needed and again after it ended."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._deadline = 0.0
        self._lock = threading.Lock()

    def ask(self, query: Query, gone: Callable[[], bool]) -> Iterator[tuple[bytes, bytes]]:
        """Send a query and yield the frames of its answer."""
        child = self.start()
        self._write(child, query.__dict__)
        self._deadline = time.monotonic() + query.timeout + GRACE
        cancelled = False
        for frame in self._frames(child):
            if frame is not None:
                yield frame
                if frame[0] in LAST:
                    return
            elif not cancelled and gone():
                cancelled = True
                self._deadline = time.monotonic() + GRACE
                self._write(child, {"cancel": True})

    def _frames(self, child: subprocess.Popen[bytes]) -> Iterator[tuple[bytes, bytes] | None]:
        """Yield frames; None after each moment without one."""
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        held = bytearray()
        while True:
            while len(held) >= HEADER.size:
                kind, size = HEADER.unpack_from(held)
                if len(held) < HEADER.size + size:
                    break
                frame = bytes(held[HEADER.size : HEADER.size + size])
                del held[: HEADER.size + size]
                yield kind, frame
            ready, _, _ = select.select([descriptor], [], [], STEP)
            if ready:
                piece = os.read(descriptor, READ)
                if not piece:
                    raise _problem("memory", "the query ended its worker: it needs too much.")
                held += piece
            elif time.monotonic() > self._deadline:
                raise _problem("timeout", "the query was ended: timeout.")
            else:
                yield None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the worker, where it does not run, and wait until it listens."""
        with self._lock:
            if self._child is not None and self._child.poll() is None:
                return self._child
            child = self._child = subprocess.Popen(
                [sys.executable, "-m", "echostill.curation.service.sql.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        self._deadline = time.monotonic() + START
        for frame in self._frames(child):
            if frame is not None:
                break
        return child

    def _write(self, child: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(message).encode() + b"\n")
            child.stdin.flush()

    def end(self) -> None:
        """Kill the worker; the next query starts another."""
        with self._lock:
            if self._child is not None and self._child.poll() is None:
                self._child.kill()
                self._child.wait()
            self._child = None


def _problem(kind: str, message: str) -> Problem:
    if kind == "timeout":
        return Problem(408, "sql-timeout", message)
    return Problem(400, "sql", message)
