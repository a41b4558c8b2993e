"""Picking in the background: one job at a time, each in a process of its own, kept across restarts.

A job is a file in the store, written when its state changes. The process calls the same function
as `echostill select`. A coreset exists once its manifest does: no unfinished one is ever seen.
"""

import contextlib
import json
import secrets
import subprocess
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from echostill.curation.selection.stage import SelectConfig
from echostill.curation.service import children
from echostill.curation.service.problems import conflict, unknown
from echostill.platform.errors import nearest
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
FINISHED = (DONE, FAILED, CANCELLED)
LISTED = 200
WAITING_MAX = 50


@dataclass(frozen=True)
class Job:
    """A pick. Times are UTC, ISO 8601."""

    id: str
    name: str
    state: str
    request: dict[str, Any]
    created: str
    stage: str = "waiting"
    fraction: float = 0.0
    message: str = ""
    started: str | None = None
    finished: str | None = None
    owns_folder: bool = False  # no coreset of that name had been started

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a caller."""
        values = asdict(self)
        del values["owns_folder"]
        return {**values, "coreset": f"/v1/coresets/{self.name}" if self.is_done else None}

    @property
    def is_done(self) -> bool:
        """Whether the coreset is there."""
        return self.state == DONE


def now() -> str:
    """The time, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class _Running:
    job_id: str
    child: subprocess.Popen[str]
    cancelled: bool = field(default=False)


class Jobs:
    """The queue of picks, and the thread that runs them one after the other."""

    def __init__(
        self,
        store: Store,
        address: str | None,
        finished: Callable[[], None],
    ) -> None:
        """Read the jobs of earlier runs and start with those that are unfinished.

        Args:
            store: the store.
            address: of a Ray cluster to pick on; None for a process on this machine.
            finished: called after each pick.
        """
        self._store = store
        self._storage = store.storage.at("service/jobs")
        self._address = address
        self._finished = finished
        self._jobs: dict[str, Job] = {}
        self._changed = threading.Condition()
        self._running: _Running | None = None
        self._closed = False
        self._recover()
        self._thread = threading.Thread(target=self._work, name="picks", daemon=True)
        self._thread.start()

    def _recover(self) -> None:
        for name in self._storage.list():
            values = json.loads(self._storage.read(name))
            job = Job(**values)
            if job.state == RUNNING:
                job = replace(job, state=QUEUED, stage="waiting", fraction=0.0, started=None)
            self._jobs[job.id] = job

    def add(self, config: SelectConfig, request: dict[str, Any]) -> Job:
        """Queue a pick.

        Raises:
            Problem: Another job of that name is unfinished, the queue is full, or the store cannot
                be written.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        job = Job(
            id=f"{stamp}-{secrets.token_hex(2)}",  # sorts by time
            name=config.name,
            state=QUEUED,
            request=request,
            created=now(),
        )
        with self._changed:
            waiting = [other for other in self._jobs.values() if other.state not in FINISHED]
            if any(other.name == job.name for other in waiting):
                raise conflict(f"a job for the coreset '{job.name}' is already waiting or running.")
            if len(waiting) >= WAITING_MAX:
                raise conflict(f"{len(waiting)} jobs are waiting: wait until some have finished.")
            try:
                self._save(job)
            except OSError as error:
                raise conflict(f"the store cannot be written ({error.strerror}).") from None
            self._changed.notify_all()
        return job

    def get(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            Problem: There is none of that id.
        """
        with self._changed:
            if job_id not in self._jobs:
                raise unknown("job", f"no job '{job_id}'.{nearest(job_id, self._jobs)}")
            return self._jobs[job_id]

    def latest(self) -> list[Job]:
        """Return the latest jobs, newest first."""
        with self._changed:
            found = sorted(self._jobs.values(), key=lambda job: job.id)
        return found[::-1][:LISTED]

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that waits or runs, and wait until it has ended.

        Raises:
            Problem: No such job, or it is finished.
        """
        job = self.get(job_id)
        with self._changed:
            job = self._jobs[job_id]
            if job.state in FINISHED:
                raise conflict(f"job '{job_id}' is already {job.state}.")
            if job.state == QUEUED:
                self._save(replace(job, state=CANCELLED, finished=now(), message="cancelled"))
                return self._jobs[job_id]
            running = self._running
        if running is not None and running.job_id == job_id:
            running.cancelled = True
            children.stop(running.child)
        with self._changed:
            self._changed.wait_for(lambda: self._jobs[job_id].state in FINISHED, timeout=30)
            return self._jobs[job_id]

    def counts(self) -> dict[str, int]:
        """Return the number of jobs in each state."""
        states = [job.state for job in list(self._jobs.values())]
        return {s: states.count(s) for s in (QUEUED, RUNNING, DONE, FAILED, CANCELLED)}

    def close(self) -> None:
        """Stop; a running pick starts again with the next service."""
        with self._changed:
            self._closed = True
            running = self._running
            self._changed.notify_all()
        if running is not None:
            children.stop(running.child)
        self._thread.join(timeout=children.GRACE * 2)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._next() is not None)
                if self._closed:
                    return
                job = self._next()
                assert job is not None
                owns = job.owns_folder or not self._store.coreset(job.name).exists()
                self._save(replace(job, state=RUNNING, started=now(), owns_folder=owns))
            self._pick(self._jobs[job.id])

    def _next(self) -> Job | None:
        queued = [job for job in self._jobs.values() if job.state == QUEUED]
        return min(queued, key=lambda job: job.id, default=None)

    def _pick(self, job: Job) -> None:
        values = {**job.request, "name": job.name, "store": self._store.root, "progress": False}
        arguments = [json.dumps(values), *([self._address] if self._address else [])]
        child = children.start("echostill.curation.service.jobs.picking", *arguments)
        running = _Running(job.id, child)
        with self._changed:
            self._running = running
            if self._closed:
                child.kill()
        message, error = "", ""
        for event in children.messages(child):
            message, error = event.get("done", message), event.get("error", error)
            if "stage" in event:
                with self._changed:
                    self._jobs[job.id] = replace(self._jobs[job.id], **event)
        if self._closed:
            return  # its file still says running: it starts again with the next service
        job = self._jobs[job.id]
        if message:
            job = replace(job, state=DONE, stage="done", fraction=1.0, message=message)
        elif running.cancelled:
            job = replace(job, state=CANCELLED, message="cancelled")
        else:
            message = error or f"the picking process exited with code {child.returncode}"
            job = replace(job, state=FAILED, message=message)
        if job.state != DONE and job.owns_folder:
            self._discard(job.name)
        self._finished()
        with self._changed:
            self._running = None
            self._save(replace(job, finished=now()))
            self._changed.notify_all()

    def _discard(self, name: str) -> None:
        """Delete what an unfinished pick left behind: a folder without a manifest."""
        storage = self._store.coreset(name)
        if not storage.exists(MANIFEST):
            with contextlib.suppress(OSError):
                storage.delete("")

    def _save(self, job: Job) -> None:
        self._storage.write(f"{job.id}.json", json.dumps(asdict(job), indent=1).encode())
        self._jobs[job.id] = job
