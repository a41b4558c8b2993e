"""A store is written by one job at a time: leases that lie in the store itself.

A lease is a small file ``lease/<key>.json``: who works on the store, on what, since when. Whoever
wants the store first writes a lease of its own, "asking", and then looks for those of others. Of
two who ask at once at least one sees the other, whichever order the store brings their files into;
whoever sees one that is held gives up, and whoever sees one that only asks takes its own back and
tries again a little later. This needs no more of a store than that a listing shows what was
written before: local disks, NFS after a write of one's own, S3 and GCS do. No file name is ever
used twice, so a dead lease is deleted without harm to a living one.

A lease is renewed every few seconds. It is dead where its process is known to be gone, on this
machine, and otherwise where it was not renewed for ``STALE_SECONDS``. Both ages are read from the
store's clock, since those of machines differ.
"""

import json
import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from echostill.platform.errors import EchostillError, UsageError
from echostill.platform.processes import find_process, host_name, machine, submission
from echostill.platform.progress import console
from echostill.platform.tables.storage import Storage

FOLDER = "lease"  # of the store
BEAT_SECONDS = 5.0  # between renewals
STALE_SECONDS = 45.0  # without a renewal, after which a lease is dead
LOOK_SECONDS = 1.0  # between looks at a lease that may be dead
ROUNDS = 20  # in which those who ask at the same moment get out of each other's way
OWNER_VARIABLE = "ECHOSTILL_LEASE_OWNER"  # for processes that work for the holder of a lease
WITHDRAW = "withdraw"  # the one stage that nothing may run beside
ASKING, HELD = "asking", "held"


@dataclass(frozen=True)
class Holder:
    """Who works on a store, as its lease says it.

    Attributes:
        key: Name of the lease.
        owner: The process that leases are held for: its own others are no hindrance.
        stage: What runs.
        result: What of the store it writes.
        alone: Whether it wants nobody else at work on the store.
        host: Name of its machine.
        machine: See :func:`.processes.machine`.
        process: Number of its process.
        began: When its process began, in the machine's ticks.
        job: Its submission id; empty where it was not submitted.
        started: When it asked for the store, UTC.
        state: ``asking`` or ``held``.
        beat: How often it was renewed.
        replaced: Leases of others that it found dead.
    """

    key: str
    owner: str
    stage: str
    result: str
    alone: bool
    host: str
    machine: str
    process: int
    began: int
    job: str
    started: str
    state: str = ASKING
    beat: int = 0
    replaced: list[str] = field(default_factory=list)

    @property
    def described(self) -> str:
        """Say who it is."""
        job = f"as job {self.job} " if self.job else ""
        return (
            f"`echostill {self.stage}` {job}on {self.host} (process {self.process}), since "
            f"{self.started}"
        )

    def hinders(self, other: "Holder") -> bool:
        """Whether it and another may not work at the same time."""
        if self.owner == other.owner:
            return False
        # A withdrawal rewrites whatever the others read.
        withdraws = WITHDRAW in (self.stage, other.stage)
        return withdraws or (self.alone and other.alone) or self.result == other.result

    def lives(self) -> bool | None:
        """Whether its process lives; None where this machine cannot tell."""
        if self.machine != machine():
            return None
        process = find_process(self.process)
        return process is not None and process.began == self.began


def owner() -> str:
    """Return for whom this process holds leases: itself, or who has sent it to work."""
    given = os.environ.get(OWNER_VARIABLE)
    if given:
        return given
    own = find_process(os.getpid())
    return f"{machine()}-{os.getpid()}-{own.began if own else 0}"


@contextmanager
def hold(storage: Storage, stage: str, result: str, *, alone: bool = True) -> Iterator[None]:
    """Hold a store while a stage works on it.

    Args:
        storage: The store; made where it is not there, and removed where nothing came into it.
        stage: Name of the stage.
        result: What of the store it writes, such as ``coresets/default``.
        alone: Refuse, and be refused by, all others who want the store alone. Otherwise only who
            writes the same result.

    Raises:
        UsageError: Another job works on the store.
        EchostillError: This process was taken for dead, and another has the store.
    """
    made = _missing_folders(storage)
    if not storage.exists():
        _begun.add(storage.root)
    lease = Lease(storage.at(FOLDER), _holder(stage, result, alone), storage.root)
    try:
        lease.acquire()
        try:
            yield
        except KeyboardInterrupt:
            if lease.lost:
                raise EchostillError(lease.lost) from None
            raise
    finally:
        lease.release()
        for folder in made:
            with suppress(OSError):  # something came into it
                folder.rmdir()
        _begun.discard(storage.root)
    if lease.lost:
        raise EchostillError(lease.lost)


def at_work(storage: Storage) -> Holder | None:
    """Return a job that works on a store, None where there is none. Only looks, and never waits.

    A job on another machine is taken to live until its lease is older than ``STALE_SECONDS`` by the
    clock of this machine.
    """
    folder = storage.at(FOLDER)
    for name in folder.list():
        if not name.endswith(".json"):
            continue
        try:
            holder = Holder(**json.loads(folder.read(name)))
        except FileNotFoundError:
            continue  # given back meanwhile
        except (ValueError, TypeError):  # of another version
            holder = Holder(name, "", "?", "", True, "?", "", 0, 0, "", "?", HELD)
        renewed = folder.modified(name)
        recent = renewed is not None and time.time() - renewed < STALE_SECONDS
        lives = holder.lives()
        if lives or (lives is None and recent):
            return holder
    return None


class Lease:
    """One lease, from asking for it to giving it back."""

    def __init__(self, folder: Storage, holder: Holder, store: str) -> None:
        """Prepare a lease; nothing is written.

        Args:
            folder: Folder of the leases.
            holder: What the lease will say.
            store: The store, for messages.
        """
        self.lost = ""  # a sentence, where another has taken the store over
        self._folder, self._own, self._store = folder, holder, store
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._in_main = threading.current_thread() is threading.main_thread()

    def acquire(self) -> None:
        """Get the lease and renew it from now on.

        Raises:
            UsageError: Another job has it.
        """
        for attempt in range(ROUNDS):
            self._write(ASKING)
            seen = self._hindering()
            living = [other for other in seen if not self._is_dead(other)]
            if not living:
                self._write(HELD)
                self._thread = threading.Thread(
                    target=self._renew, daemon=True, name="echostill-lease"
                )
                self._thread.start()
                return
            if any(other.state == HELD for other in living) or attempt == ROUNDS - 1:
                raise self._refusal(living)
            self._delete(self._own.key)
            self._own = replace(self._own, key=_new_key())
            time.sleep(random.SystemRandom().uniform(0.1, 0.5) * min(attempt + 1, 4))

    def release(self) -> None:
        """Give the lease back; where the store does not answer, it will be found dead."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=BEAT_SECONDS)
        with suppress(EchostillError, OSError):
            self._delete(self._own.key)
        if self._folder.is_local:
            with suppress(OSError):  # others have leases, or it is not there
                os.rmdir(self._folder.local_path())

    def _is_dead(self, other: Holder) -> bool:
        """Find out whether a lease is dead, and delete it if so; watches it where that must be."""
        lives = other.lives()
        if lives:
            return False
        why = "its process is gone"
        if lives is None:
            said = False
            until = time.monotonic() + 2 * STALE_SECONDS
            while True:
                age = self._age(other)
                if age is None:
                    return True  # given back meanwhile
                if age > STALE_SECONDS or time.monotonic() > until:
                    break
                now = self._read(other.key)
                if now is not None and now.beat != other.beat:
                    return False
                if not said and age > BEAT_SECONDS:
                    said = True
                    self._say(
                        f"the store '{self._store}' is in use by {other.described}, which has "
                        f"given no sign of life for {age:.0f} s: waiting for one, up to "
                        f"{STALE_SECONDS:g} s after the last."
                    )
                time.sleep(LOOK_SECONDS)
                self._write(ASKING)
            why = f"it gave no sign of life for {STALE_SECONDS:g} s"
        self._delete(other.key)
        self._own = replace(self._own, replaced=[*self._own.replaced, other.key])
        if other.state == HELD:
            self._say(
                f"taking over the store '{self._store}' from {other.described}: {why}. What it "
                "had finished is kept."
            )
        return True

    def _age(self, other: Holder) -> float | None:
        """Seconds since a lease was renewed, by the store's clock; None where it is gone."""
        theirs = self._folder.modified(_name(other.key))
        own = self._folder.modified(_name(self._own.key))
        if theirs is None:
            return None
        return (time.time() if own is None else own) - theirs

    def _renew(self) -> None:
        """Renew the lease until it is given back; end the run where another has taken it over."""
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(EchostillError, OSError, ValueError):  # the next time, then
                taker = next((o for o in self._others() if self._own.key in o.replaced), None)
                if taker is None and self._folder.exists(_name(self._own.key)):
                    self._write(HELD)
                    continue
                by = f" by {taker.described}" if taker is not None else ""
                self.lost = (
                    f"this run lost the store '{self._store}': it gave no sign of life for "
                    f"{STALE_SECONDS:g} s, and its lease was taken over{by}. What was finished is "
                    "kept."
                )
                if self._in_main and not self._ended.is_set():
                    # As Ctrl-C would do it, so that a main thread waiting for Ray wakes up.
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    def _others(self) -> list[Holder]:
        found = []
        for name in self._folder.list():
            if not name.endswith(".json"):  # what nodes prove with that they see the store
                continue
            key = name.removesuffix(".json")
            if key != self._own.key and (holder := self._read(key)) is not None:
                found.append(holder)
        return found

    def _hindering(self) -> list[Holder]:
        return [other for other in self._others() if other.hinders(self._own)]

    def _refusal(self, living: list[Holder]) -> UsageError:
        first = min(living, key=lambda other: (other.state != HELD, other.started))
        stop = f"`ray job stop {first.job}`" if first.job else "Ctrl-C there, or kill its process"
        return UsageError(
            f"refused: the store '{self._store}' is in use by {first.described}. Two jobs would "
            f"write over each other: wait until it has ended, stop it ({stop}), or use another "
            "store. If this is a copy of that job's store, made while it ran, delete the copy's "
            f"'{FOLDER}/'."
        )

    def _read(self, key: str) -> Holder | None:
        """Return what a lease says; None where it is gone."""
        try:
            values: dict[str, Any] = json.loads(self._folder.read(_name(key)))
            return Holder(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # of another version, which only its age can judge
            return Holder(key, "", "?", "", True, "?", "", 0, 0, "", "?", HELD)

    def _write(self, state: str) -> None:
        self._own = replace(self._own, state=state, beat=self._own.beat + 1)
        data = json.dumps(asdict(self._own)).encode()
        try:
            self._folder.write(_name(self._own.key), data)
        except FileNotFoundError:  # whoever gave a lease back has just removed the folder
            self._folder.write(_name(self._own.key), data)

    def _delete(self, key: str) -> None:
        self._folder.delete(_name(key))

    def _say(self, text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)


_begun: set[str] = set()  # stores that were not there when this process began to hold them


def is_store(storage: Storage) -> bool:
    """Return whether a store is there, and not only this process's lease of one to come."""
    if storage.root not in _begun:
        return storage.exists()
    return any(not name.startswith(f"{FOLDER}/") for name in storage.list(recursive=True))


def _holder(stage: str, result: str, alone: bool) -> Holder:
    own, job = find_process(os.getpid()), submission()
    return Holder(
        key=_new_key(),
        owner=owner(),
        stage=stage,
        result=result,
        alone=alone,
        host=host_name(),
        machine=machine(),
        process=os.getpid(),
        began=own.began if own else 0,
        job=job.name if job else "",
        started=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def _new_key() -> str:
    return uuid.uuid4().hex[:16]


def _missing_folders(storage: Storage) -> list[Path]:
    """The folders that writing into a store will make, the innermost first."""
    if not storage.is_local:
        return []
    path = Path(storage.local_path())
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def _name(key: str) -> str:
    return f"{key}.json"
