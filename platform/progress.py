"""Progress of long work: a bar on a terminal, sparse lines elsewhere (logs, submitted jobs).

Lines come by time, also while no unit of work gets finished: the first shard may take minutes.
"""

import sys
import threading
import time
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

LINE_EVERY_SECONDS = 15.0


class Messages:
    """Messages on standard error. Loads rich with the first: most questions print none."""

    @cached_property
    def rich(self) -> "Console":
        """The console of rich that prints them."""
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    def print(
        self, text: object, *, markup: bool = True, soft_wrap: bool = False, end: str = "\n"
    ) -> None:
        """Print a message, as rich does."""
        self.rich.print(text, markup=markup, soft_wrap=soft_wrap, end=end)


console = Messages()


class Progress:
    """Counts units of work done out of a known total."""

    def __init__(self, title: str, total: int, *, enabled: bool = True) -> None:
        self.title, self.total, self.done = title, total, 0
        self.note = ""
        self._first = 0
        self._bar: RichProgress | None = None
        self._enabled = enabled
        self._started = self._last_line = self._entered = time.monotonic()
        self._messages: Any = None
        self._poll: threading.Thread | None = None
        self._stop = threading.Event()
        self._clock: threading.Thread | None = None

    def __enter__(self) -> "Progress":
        if self._enabled and sys.stderr.isatty():
            from rich import progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description:>12}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
                console=console.rich,
            )
            self._task = self._bar.add_task(self.title, total=self.total, note="")
            self._bar.start()
        elif self._enabled:
            self._clock = threading.Thread(
                target=self._watch_clock, daemon=True, name="echostill-progress-lines"
            )
            self._clock.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in (self._poll, self._clock):
            if thread is not None:
                thread.join(timeout=2)
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Set how much is done."""
        if self.done == 0:  # the first units pay for start-up and would mislead the estimate
            self._started, self._first = time.monotonic(), done
        self.done, self.note = done, note
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        if self._enabled:
            self._print_line()

    def _print_line(self) -> None:
        """Print a line, unless the last one is too recent."""
        now = time.monotonic()
        if now - self._last_line < LINE_EVERY_SECONDS:
            return
        self._last_line = now
        left = self.seconds_left()
        said = f", {now - self._entered:.0f} s so far"
        said += "" if left is None else f", about {left:.0f} s left ({_clock(left)})"
        console.print(f"{self.title}: {self.done}/{self.total}{said} {self.note}".rstrip())

    def _watch_clock(self) -> None:
        while not self._stop.wait(min(1.0, LINE_EVERY_SECONDS)):
            self._print_line()

    def seconds_left(self) -> float | None:
        """Estimate the seconds to the end from the pace so far; None while there is no pace."""
        counted = self.done - self._first
        if counted <= 0:
            return None
        pace = (time.monotonic() - self._started) / counted
        return round(pace * (self.total - self.done), 1)

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Add to what is done."""
        self.update(self.done + amount, note)

    def channel(self, part: str = "") -> "Channel":
        """Return a channel through which a remote process moves this bar.

        Several parts may move one bar: what is done is their sum.
        """
        from ray.util.queue import Queue

        if self._messages is None:
            self._messages = Queue(actor_options={"num_cpus": 0})
            self._poll = threading.Thread(
                target=self._listen, args=(self._messages,), daemon=True, name="echostill-progress"
            )
            self._poll.start()
        return Channel(self._messages, part)

    def here(self, part: str = "") -> "PartHere":
        """Return what moves this bar from this process, as :meth:`channel` does from another."""
        return PartHere(self, part)

    def _listen(self, messages: Any) -> None:
        from ray.util.queue import Empty

        parts: dict[str, int] = {}
        while not self._stop.is_set():
            try:
                part, done, note = messages.get(timeout=0.5)
            except Empty:
                continue
            except Exception:  # the cluster is going away: the bar is not worth an error
                return
            parts[part] = done
            self.update(sum(parts.values()), f"{part} {note}".strip())


def _clock(seconds: float) -> str:
    """The time of day some seconds from now."""
    form = "%H:%M" if seconds < 12 * 3600 else "%d %b %H:%M"
    return time.strftime(form, time.localtime(time.time() + seconds))


class Sends(Protocol):
    """Tells a progress bar how much of a part is done."""

    def send(self, done: int, note: str = "") -> None:
        """Report how much of the part is done."""


class PartHere:
    """Moves a bar of the same process; one part at a time."""

    def __init__(self, bar: Progress, part: str) -> None:
        self._bar, self._part = bar, part
        self._before = bar.done

    def send(self, done: int, note: str = "") -> None:
        """Report how much of the part is done."""
        self._bar.update(self._before + done, f"{self._part} {note}".strip())


class Channel:
    """The far end of a progress bar; sending never fails and never waits."""

    def __init__(self, messages: Any, part: str) -> None:
        self._messages, self._part = messages, part

    def send(self, done: int, note: str = "") -> None:
        """Report how much of the part is done."""
        try:
            self._messages.put_nowait((self._part, done, note))
        except Exception:  # a full queue or a dead driver must not stop training
            return
