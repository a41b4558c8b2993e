"""Child processes for heavy work: they can be cancelled, and they end when the service ends.

The service holds the write end of the child's standard input. When it dies, however it dies, the
pipe closes and the child leaves; no killed service leaves a half-done pick running beside its
successor. A child reports to the service with JSON lines on standard output.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

GRACE = 5.0  # seconds between asking a child to end and killing it
NICENESS = 10  # requests go before preparation


class Send(Protocol):
    """Sends a message, made of keyword arguments, from a child to the service."""

    def __call__(self, **message: Any) -> None:
        """Send."""


def start(module: str, *arguments: str, outlives: bool = False) -> subprocess.Popen[str]:
    """Start ``python -m module``; its errors go to the service's own standard error.

    Args:
        module: Its work runs in :func:`in_child`.
        arguments: Anyone on this machine can read them.
        outlives: Whether it goes on when the service is interrupted or dies.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=outlives,
    )


def messages(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """Yield the messages of a child until it ends; other lines are ignored."""
    assert child.stdout is not None
    for line in child.stdout:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found
    child.wait()


def stop(child: subprocess.Popen[str]) -> None:
    """End a child: ask first, then kill it."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(GRACE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def in_child(work: Callable[[Send], None], *, outlives: bool = False) -> None:
    """Run a child's work: end with the parent, give way to it, and turn errors into a message.

    Args:
        work: called with the function that sends its messages.
        outlives: whether it goes on when the parent has ended.
    """
    from echostill.platform.errors import EchostillError

    channel = _own_channel()
    if not outlives:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    with contextlib.suppress(OSError):
        os.nice(NICENESS)

    def send(**message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody listens any more
            channel.write(json.dumps(message) + "\n")
            channel.flush()

    try:
        work(send)
    except EchostillError as error:
        send(error=str(error))
        sys.exit(error.exit_code)
    except MemoryError:
        send(error="out of memory")
        sys.exit(1)


def _own_channel() -> IO[str]:
    """Keep standard output for messages; redirect what libraries print to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return channel


def _exit_with_parent() -> None:
    # os.read: the object sys.stdin would be locked by this thread when the interpreter ends.
    while os.read(0, 4096):
        pass
    os._exit(1)
