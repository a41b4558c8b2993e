"""Following a submitted job: its log as it is written, what it waits for, how it ended.

The log comes through a connection that stays open, so that none of it is read twice. Where that is
lost it is opened again, and what was shown before is passed over.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TextIO

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.preflight.answers import NoAnswerError, within
from echostill.platform.progress import console

PATIENCE_SECONDS = 60.0  # without an answer of the dashboard
RETRY_SECONDS = 2.0  # between attempts to reach it
STATUS_SECONDS = 2.0  # between looks at the job's state
ANSWER_SECONDS = 15.0  # for one answer; a busy head is slow
SAY_EVERY_SECONDS = 60.0  # that a job still waits to be started
TAIL_SECONDS = 5.0  # for the end of the log, after the job has ended


class LostError(Exception):
    """The dashboard does not answer; the text says why."""


class JobLog:
    """Shows a job's log, each character once, however often it is opened."""

    def __init__(self, sink: TextIO) -> None:
        """Show a log on a stream."""
        self._sink, self._shown, self._opened = sink, 0, 0

    def opened(self) -> None:
        """Begin at the beginning: what comes now was perhaps shown before."""
        self._opened = 0

    def add(self, text: str) -> None:
        """Show what is new of the next piece."""
        new = text[max(self._shown - self._opened, 0) :]
        self._opened += len(text)
        if new:
            self._shown += len(new)
            self._sink.write(new)
            self._sink.flush()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was shown yet."""
        return not self._shown


class Follower:
    """Follows one job to its end."""

    def __init__(self, client: Any, name: str, address: str, sink: TextIO = sys.stdout) -> None:
        """Follow a job.

        Args:
            client: Ray's ``JobSubmissionClient``.
            name: Submission id.
            address: Of the dashboard, for messages.
            sink: Where the log goes.
        """
        self._client, self._name, self._address = client, name, address
        self._log = JobLog(sink)
        self._state, self._said = "", 0.0
        self._answered = 0.0  # when the dashboard last did

    def follow(self) -> Any:
        """Show the log until the job has ended.

        Returns:
            Ray's details of the ended job.

        Raises:
            EchostillError: The dashboard did not answer for ``PATIENCE_SECONDS``, or no longer
                knows the job.
        """
        lost: float | None = None
        while True:
            began = time.monotonic()
            try:
                return asyncio.run(self._attempt())
            except LostError as error:
                now = time.monotonic()
                if lost is None or self._answered > lost:
                    lost = now
                    _say(
                        f"the dashboard at {self._address} did not answer ({error}): trying again "
                        f"for up to {PATIENCE_SECONDS:g} s"
                    )
                if now - lost > PATIENCE_SECONDS:
                    raise EchostillError(
                        f"the dashboard at {self._address} did not answer for "
                        f"{PATIENCE_SECONDS:g} s ({error}). If its cluster lives, {self._name} "
                        f"goes on: {how_to_follow(self._name, self._address)}. If not, submit the "
                        "stage again on a new one: finished work is kept in the store."
                    ) from None
                time.sleep(max(RETRY_SECONDS - (now - began), 0.0))

    async def _attempt(self) -> Any:
        """Follow through one connection; return the job's details once it has ended."""
        await self._look()
        tail = asyncio.create_task(self._show())
        try:
            while True:
                info = await self._look()
                if info.status.is_terminal():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(asyncio.shield(tail), TAIL_SECONDS)
                    return info
                await asyncio.wait([tail], timeout=STATUS_SECONDS)
                if tail.done():
                    tail.result()
                    # It ended with the job, whose state follows; or with its server.
                    await asyncio.sleep(0.2)
                    if not (await self._look()).status.is_terminal():
                        raise LostError("it closed the connection")
        finally:
            tail.cancel()
            with suppress(asyncio.CancelledError, LostError):
                await tail

    async def _show(self) -> None:
        import aiohttp

        self._log.opened()
        try:
            async for text in self._client.tail_job_logs(self._name):
                self._log.add(text)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise LostError(reason(error)) from None

    async def _look(self) -> Any:
        """Return the job's details, and say what it waits for."""
        info = await asyncio.to_thread(ask, lambda: self._client.get_job_info(self._name))
        self._answered = time.monotonic()
        now, state = self._answered, str(info.status.value)
        if state == "PENDING" and self._log.is_empty:
            if now - self._said > SAY_EVERY_SECONDS or not self._said:
                _say(f"{self._name} waits to be started: {waits_for(info.message)}")
                self._said = now
        elif state == "RUNNING" and state != self._state:
            _say(f"{self._name} runs")
        self._state = state
        return info


def ask(call: Callable[[], Any]) -> Any:
    """Return the dashboard's answer.

    Raises:
        LostError: There is none in time.
        EchostillError: It knows no such job.
    """
    try:
        return within(call, ANSWER_SECONDS)
    except NoAnswerError:
        raise LostError(f"no answer within {ANSWER_SECONDS:g} seconds") from None
    except RuntimeError as error:  # what Ray makes of every other status than 200
        if "404" in str(error) or "does not exist" in str(error):
            raise UsageError(
                "the cluster knows no job of that id: `ray job list` shows what it knows. One that "
                "was started again forgets its jobs; submit the stage again, finished work is kept."
            ) from None
        raise LostError(reason(error)) from None
    except (OSError, ValueError) as error:  # requests' own errors are OSErrors
        raise LostError(reason(error)) from None


def reason(error: BaseException) -> str:
    """Say in a few words why a connection failed."""
    text = " ".join(str(error).split())
    if "refused" in text:
        return "nothing listens there"
    if "reset" in text or "closed" in text or "aborted" in text or "disconnected" in text:
        return "it closed the connection"
    if "imed out" in text or "imeout" in text:
        return "no answer in time"
    return text[:120] or type(error).__name__


def waits_for(message: str | None) -> str:
    """Shorten what Ray says of a job that has not started."""
    text = " ".join((message or "").split()).removeprefix("Job has not started yet. ")
    return text or "for its driver's process"


def how_to_follow(name: str, address: str) -> str:
    """Return how to follow a job."""
    return f"`echostill submit --follow {name} --address {address}`"


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
