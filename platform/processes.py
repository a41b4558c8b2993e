"""Processes of this machine, the machine itself, and the Ray job that this process belongs to."""

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the driver of a submitted job
DASHBOARD = "dashboard"  # in a job's metadata: where it was submitted to


@dataclass(frozen=True)
class Process:
    """A process that lives.

    Attributes:
        number: Its number, which the kernel gives to others later.
        name: Name of its program.
        parent: Number of its parent.
        began: When it began, in clock ticks since the machine did: with the number it is unique.
    """

    number: int
    name: str
    parent: int
    began: int


def find_process(number: int) -> Process | None:
    """Return a process; None where it is gone, or dead and not buried."""
    try:
        text = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return None
    name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    return None if rest[0] in "ZX" else Process(number, name, int(rest[1]), int(rest[19]))


def all_processes() -> Iterator[Process]:
    """Iterate over the processes that this one can see."""
    for entry in Path("/proc").glob("[0-9]*"):
        if (found := find_process(int(entry.name))) is not None:
            yield found


def host_name() -> str:
    """Return this machine's name."""
    return socket.gethostname()


@lru_cache(maxsize=1)
def machine() -> str:
    """Return what names this machine, since it was started, and the processes seen on it.

    Containers of one machine have the same numbers for different processes: they differ here.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        whole = f"{started} {os.readlink('/proc/self/ns/pid')}"
        return hashlib.sha256(whole.encode()).hexdigest()[:16]
    except OSError:  # nobody can tell who lives here
        return os.urandom(8).hex()


@dataclass(frozen=True)
class Submission:
    """A submitted job.

    Attributes:
        name: Its submission id; empty where Ray does not say.
        dashboard: Address of the dashboard, as whoever submitted the job reaches it; empty where
            the job was not submitted by `echostill submit`.
    """

    name: str
    dashboard: str = ""

    def page(self, dashboard: str = "") -> str:
        """Return the URL of the job's page.

        Args:
            dashboard: Address to take where the job does not say where it was submitted to.
        """
        where = self.dashboard or dashboard
        if not where or not self.name:
            return ""
        return f"{where if '://' in where else f'http://{where}'}".rstrip("/") + (
            f"/#/jobs/{self.name}"
        )


def submission() -> Submission | None:
    """Return the job that this process was submitted as; None where it was started otherwise."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return None
    try:
        metadata = json.loads(text).get("metadata") or {}
    except (ValueError, AttributeError):
        metadata = {}
    return Submission(str(metadata.get("job_submission_id", "")), str(metadata.get(DASHBOARD, "")))
