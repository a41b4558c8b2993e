"""Withdrawals from a running service: one at a time, each in a process of its own.

The process calls the same function as `echostill withdraw`, and it outlives the service: the store
cannot be read before it has ended. What is withdrawn is told to it on its standard input, since
others on the machine can read the arguments of a process; the service keeps nothing of it.
"""

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from echostill.curation.service import children
from echostill.curation.service.problems import conflict
from echostill.curation.withdrawal.receipt import Receipt
from echostill.curation.withdrawal.request import WithdrawalRequest
from echostill.curation.withdrawal.withdrawing import withdraw
from echostill.platform.errors import EchostillError
from echostill.platform.tables.store import Store
from echostill.platform.withdrawal.state import PENDING, RECEIPTS

LOGGER = logging.getLogger("echostill.service")
IDLE, RUNNING, INTERRUPTED, DONE, FAILED = "idle", "running", "interrupted", "done", "failed"


@dataclass(frozen=True)
class WithdrawalState:
    """How far a withdrawal is; it names nobody."""

    state: str = IDLE
    stage: str = ""
    fraction: float = 0.0
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Withdrawals:
    """The withdrawals from a store."""

    def __init__(self, store: Store, key: bytes | None, changed: Callable[[], None]) -> None:
        """Nothing is at work yet.

        Args:
            store: the store.
            key: the user's key.
            changed: called when the store cannot be read any more, and when it can again.
        """
        self._store, self._key, self._changed = store, key, changed
        self._progress = WithdrawalState()
        self._lock = threading.Lock()

    @property
    def is_pending(self) -> bool:
        """Whether a withdrawal has begun and not ended, here or in another process."""
        return self._store.storage.exists(PENDING)

    @property
    def progress(self) -> WithdrawalState:
        """How far the withdrawal at work is, or what became of the last one."""
        progress = self._progress
        if progress.state != RUNNING and self.is_pending:
            failed = progress.message if progress.state == FAILED else ""
            why = failed or "it was interrupted, or another process is at work on it"
            return WithdrawalState(
                INTERRUPTED, message=f"a withdrawal has begun and not ended: {why}"
            )
        return progress

    def receipts(self) -> list[Receipt]:
        """Return the receipts, newest first."""
        kept = self._store.storage.at(RECEIPTS)
        return [Receipt(**json.loads(kept.read(name))) for name in sorted(kept.list())[::-1]]

    def preview(self, request: WithdrawalRequest, reason: str) -> Receipt:
        """Return what a withdrawal would remove.

        Raises:
            UsageError: As the command raises it.
        """
        return withdraw(self._store.root, request, reason=reason, key=self._key, dry_run=True)

    def start(self, request: WithdrawalRequest | None, reason: str) -> WithdrawalState:
        """Start a withdrawal, or finish an interrupted one.

        Raises:
            Problem: One is at work.
        """
        given = {
            "request": None if request is None else asdict(request),
            "reason": reason,
            "key": None if self._key is None else self._key.hex(),
        }
        with self._lock:
            if self._progress.state == RUNNING:
                raise conflict("a withdrawal is at work: wait until it is done.")
            self._progress = started = WithdrawalState(RUNNING, "looking")
        threading.Thread(target=self._run, args=[given], daemon=True, name="withdrawal").start()
        return started

    def _run(self, given: dict[str, Any]) -> None:
        try:
            ended = self._withdraw(given)
        except OSError as error:  # no process could be started, or it ended before it was told
            ended = WithdrawalState(FAILED, message=str(error))
        self._tell()
        self._progress = ended

    def _tell(self) -> None:
        try:
            self._changed()
        except (EchostillError, OSError, ValueError) as error:  # it looks again by itself
            LOGGER.warning("cannot read the store: %s", error)

    def _withdraw(self, given: dict[str, Any]) -> WithdrawalState:
        module = "echostill.curation.service.jobs.withdrawing"
        child = children.start(module, self._store.root, outlives=True)
        assert child.stdin is not None
        child.stdin.write(json.dumps(given) + "\n")
        child.stdin.flush()
        message, error = "", ""
        for event in children.messages(child):
            message, error = event.get("done", message), event.get("error", error)
            if "stage" in event:
                self._progress = WithdrawalState(RUNNING, event["stage"], event["fraction"])
                self._tell()
        if message:
            return WithdrawalState(DONE, "done", 1.0, message)
        why = error or f"the process exited with code {child.returncode}"
        return WithdrawalState(FAILED, message=why)
