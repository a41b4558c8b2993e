"""A child process that is a copy of this one, with the libraries that this one has loaded."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def can_fork() -> bool:
    """Return whether a copy of this process can work: it would have only one of its threads."""
    return sys.platform == "linux" and threading.active_count() == 1


class ForkedChild:
    """A copy that serves two pipes; the part of ``subprocess.Popen`` that a pool of workers uses.

    Attributes:
        stdin: where the child reads requests.
        stdout: where its answers come.
    """

    def __init__(self, serve: Callable[[int, int], NoReturn]) -> None:
        """Start it.

        Args:
            serve: called in the child with the file descriptors of requests and answers.
        """
        requests, to_child = os.pipe()
        from_child, answers = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(to_child)  # or the child would never see the end of its requests
            os.close(from_child)
            _child(serve, requests, answers)
        os.close(requests)
        os.close(answers)
        self.stdin = os.fdopen(to_child, "wb")
        self.stdout = os.fdopen(from_child, "rb")
        self._exit: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self._exit is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                self._exit = os.waitstatus_to_exitcode(status)
        return self._exit

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self.poll() is None:
            os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait until it has ended and return its exit code."""
        if self._exit is None:
            self._exit = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self._exit


def _child(serve: Callable[[int, int], NoReturn], requests: int, answers: int) -> NoReturn:
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # the parent's ways to end are not the child's
        serve(requests, answers)
    finally:
        os._exit(1)  # nothing of the parent is to be finished here
