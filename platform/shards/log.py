"""What a sharded stage tells while it runs: row counts, pace, the progress bar, the event log."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from echostill.platform.progress import Progress
from echostill.platform.runtime import WorkerPlan
from echostill.platform.shards.events import EventLog


@dataclass(frozen=True)
class Accounting:
    """Row counts of a stage."""

    rows_in: int
    rows_out: int
    quarantined: int
    shards: int
    shards_resumed: int

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]], resumed: int) -> "Accounting":
        """Count what shards' records say; ``resumed`` of them were finished earlier."""
        shards = out = held = 0
        for record in records:
            shards += 1
            out += record["part"]["rows"]
            held += record["quarantine"]["rows"] if record["quarantine"] else 0
        return cls(out + held, out, held, shards, resumed)

    def describe(self) -> str:
        """Say the accounting in words."""
        resumed = f" ({self.shards_resumed} finished earlier)" if self.shards_resumed else ""
        return (
            f"{self.rows_in} rows in = {self.rows_out} rows out + {self.quarantined} quarantined; "
            f"{self.shards} shard(s){resumed}"
        )


@dataclass
class ShardLog:
    """Follows one run of a stage; a context manager, so that every end is logged."""

    events: EventLog | None
    bar: Progress
    mode: str  # run or retry
    plan: WorkerPlan
    resumed: int = 0
    _started: float = field(default_factory=time.monotonic)
    _first: float | None = None  # when the first shard was finished: the pace counts from there
    _rows: int = 0
    _paced_rows: int = 0

    def __enter__(self) -> "ShardLog":
        self.bar.__enter__()
        self._add("started", mode=self.mode, shards=self.bar.total, plan=self.plan.describe())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.__exit__(kind, error, trace)
        if kind is None:
            return
        if issubclass(kind, Exception):
            self._add("failed", error=kind.__name__, message=str(error))
        else:
            self._add("interrupted")

    def resume(self, records: dict[int, dict[str, Any]], cut: list[int]) -> None:
        """Say what earlier runs finished, and which shards they had begun and did not finish."""
        self.resumed = len(records)
        self.bar.update(self.resumed)
        if records or cut:
            counts = Accounting.of(records.values(), self.resumed)
            self._add(
                "resumed",
                shards=self.resumed,
                rows_out=counts.rows_out,
                quarantined=counts.quarantined,
                repeated=cut,
            )

    def shard(self, told: dict[str, Any], records: dict[int, dict[str, Any]]) -> None:
        """Say that a shard is finished.

        Args:
            told: Its record, the worker that made it and the seconds it took.
            records: All records so far, for the counts.
        """
        own = Accounting.of([told["record"]], 0)
        so_far = Accounting.of(records.values(), 0)
        now = time.monotonic()
        self._rows += own.rows_in
        if self._first is None:  # the first shard pays for start-up and would mislead
            self._first, pace = now, self._rows / max(now - self._started, 1e-9)
        else:
            self._paced_rows += own.rows_in
            pace = self._paced_rows / max(now - self._first, 1e-9)
        self.bar.advance(
            note=f"{so_far.rows_out} rows at {pace:.3g}/s, {so_far.quarantined} quarantined"
        )
        self._add(
            "shard",
            shard=told["record"]["shard"],
            rows_out=own.rows_out,
            quarantined=own.quarantined,
            worker=told["worker"],
            seconds=told["seconds"],
            ended=told["ended"],
            done=self.bar.done,
            shards=self.bar.total,
            rows_out_so_far=so_far.rows_out,
            quarantined_so_far=so_far.quarantined,
            rows_per_second=round(pace, 3),
            seconds_left=self.bar.seconds_left(),
        )

    def finish(self, accounting: Accounting, cut: list[int]) -> None:
        """Say that the run is finished, and which of its attempts were cut and done again."""
        self._add(
            "finished",
            shards=accounting.shards,
            rows_in=accounting.rows_in,
            rows_out=accounting.rows_out,
            quarantined=accounting.quarantined,
            repeated=cut,
            seconds=round(time.monotonic() - self._started, 3),
        )

    def _add(self, event: str, **values: Any) -> None:
        if self.events is not None:
            self.events.add(event, **values)
