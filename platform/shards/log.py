"""What a sharded stage tells while it runs: row counts, pace, the progress bar, the event log."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.progress import Progress, console
from echostill.platform.shards.events import StageRun, stage_run
from echostill.platform.tables.storage import Storage

WAIT = "wait for decoding"  # as a worker's seconds name it
STARVED = 0.2  # of a worker's time in that wait, from which on the remedy is named
JUDGED = 2  # shards before that, since the first one also waits for everything to start


@dataclass(frozen=True)
class Accounting:
    """Row counts of a stage."""

    rows_in: int
    rows_out: int
    quarantined: int
    shards: int
    shards_resumed: int
    expected: int = 0  # of the quarantined rows: files that hold nothing to read, and are no errors
    held_back: int = 0  # of the quarantined rows: they wait for a person, and are no errors

    @classmethod
    def of(cls, records: Iterable[dict[str, Any]], resumed: int) -> "Accounting":
        """Count what shards' records say; ``resumed`` of them were finished earlier."""
        shards = out = quarantined = expected = held_back = 0
        for record in records:
            shards += 1
            out += record["part"]["rows"]
            quarantined += record["quarantine"]["rows"] if record["quarantine"] else 0
            expected += record.get("expected", 0)
            held_back += record.get("held_back", 0)
        return cls(out + quarantined, out, quarantined, shards, resumed, expected, held_back)

    @property
    def errors(self) -> int:
        """Quarantined rows that were not to be expected, and do not just wait for a person."""
        return self.quarantined - self.expected - self.held_back

    @property
    def counts(self) -> dict[str, int]:
        """The row counts by name."""
        return {
            "shards": self.shards,
            "rows_in": self.rows_in,
            "rows_out": self.rows_out,
            "quarantined": self.quarantined,
            "held_back": self.held_back,
        }

    def describe(self) -> str:
        """Say the accounting in words."""
        resumed = f" ({self.shards_resumed} finished earlier)" if self.shards_resumed else ""
        expected = f" ({self.expected} of them no errors)" if self.expected else ""
        return (
            f"{self.rows_in} rows in = {self.rows_out} rows out + {self.quarantined} quarantined"
            f"{expected}; {self.shards} shard(s){resumed}"
        )


class ShardLog:
    """Reports one run of a sharded stage: to the progress bar and to the event log."""

    def __init__(self, events: StageRun, bar: Progress, plan: WorkerPlan | None = None) -> None:
        """Report to an open progress bar and to the events of the stage's run."""
        self.events, self.bar, self.plan = events, bar, plan
        self._waited: list[tuple[float, float]] = []  # of each shard's seconds of work
        self.resumed = 0
        self._started = time.monotonic()
        self._first: float | None = (
            None  # when the first shard finished: the pace counts from there
        )
        self._rows = 0
        self._paced_rows = 0

    @classmethod
    @contextmanager
    def open(
        cls, events: Storage | None, bar: Progress, stage: str, mode: str, plan: WorkerPlan
    ) -> Iterator["ShardLog"]:
        """Log a run (mode ``run`` or ``retry``) from its start to whatever ends it."""
        with (
            bar,
            stage_run(events, stage, mode=mode, shards=bar.total, plan=plan.describe()) as run,
        ):
            yield cls(run, bar, plan)

    def resume(self, records: dict[int, dict[str, Any]], cut: list[int]) -> None:
        """Say what earlier runs finished, and which shards they had begun and did not finish."""
        self.resumed = len(records)
        self.bar.update(self.resumed)
        if records or cut:
            counts = Accounting.of(records.values(), self.resumed)
            self.events.add(
                "resumed",
                shards=self.resumed,
                rows_out=counts.rows_out,
                quarantined=counts.quarantined,
                repeated=cut,
            )

    def shard(self, finished: dict[str, Any], records: dict[int, dict[str, Any]]) -> None:
        """Say that a shard is finished.

        Args:
            finished: Its record, the worker that made it and the seconds it took.
            records: All records so far, for the counts.
        """
        own = Accounting.of([finished["record"]], 0)
        so_far = Accounting.of(records.values(), 0)
        now = time.monotonic()
        self._rows += own.rows_in
        if self._first is None:  # the first shard pays for start-up and would mislead
            self._first, pace = now, self._rows / max(now - self._started, 1e-9)
        else:
            self._paced_rows += own.rows_in
            pace = self._paced_rows / max(now - self._first, 1e-9)
        waits = self._wait_share(finished["seconds"])
        note = f"{so_far.rows_out} rows at {pace:.3g}/s, {so_far.quarantined} quarantined"
        self.bar.advance(note=note if waits is None else f"{note}, waits {waits:.0%}")
        self.events.add(
            "shard",
            shard=finished["record"]["shard"],
            rows_out=own.rows_out,
            quarantined=own.quarantined,
            worker=finished["worker"],
            seconds=finished["seconds"],
            ended=finished["ended"],
            done=self.bar.done,
            shards=self.bar.total,
            rows_out_so_far=so_far.rows_out,
            quarantined_so_far=so_far.quarantined,
            rows_per_second=round(pace, 3),
            seconds_left=self.bar.seconds_left(),
            **({} if waits is None else {"wait_share": round(waits, 3)}),
        )

    def _wait_share(self, seconds: dict[str, float]) -> float | None:
        """Return the share of the work so far in which workers waited for decoded images.

        None where they decode for themselves. Once it is known to be large, the remedy is said.
        """
        if self.plan is None or not self.plan.decoders or WAIT not in seconds:
            return None
        self._waited.append((seconds[WAIT], seconds["work"]))
        counted = self._waited[1:] or self._waited
        share = sum(wait for wait, _ in counted) / max(sum(work for _, work in counted), 1e-9)
        if len(self._waited) == JUDGED and share > STARVED:
            console.print(
                f"{self.events.stage}: workers wait for decoded images {share:.0%} of their time: "
                f"give decoding more than {self.plan.decoders} CPU(s), as by nodes without GPUs "
                f"({self.events.stage}.decoders).",
                soft_wrap=True,
            )
        return share

    def finish(self, accounting: Accounting, cut: list[int]) -> None:
        """Say that the run is finished, and which of its attempts were cut and done again."""
        self.events.outcome |= {**accounting.counts, "repeated": cut}
