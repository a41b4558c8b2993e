"""Sharded stages: many independent shards become the parts of one table, each finished for good.

A shard's worker returns its rows and its quarantined rows, which :mod:`.files` writes for good.
Resuming runs the shards that are not finished; what was running when something died is run again:
at most one shard per worker. When every shard is finished, the manifest makes the table exist.

What lies in quarantine can be tried again (:meth:`ShardedStage.retry`): the units it came from are
done anew and their rows take their places, as if they had worked the first time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from echostill.platform.cluster.plans import WorkerPlan
from echostill.platform.errors import EchostillError
from echostill.platform.progress import Progress
from echostill.platform.shards.files import ShardFiles, ShardWorker
from echostill.platform.shards.log import Accounting, ShardLog
from echostill.platform.shards.records import Record
from echostill.platform.shards.run import stream
from echostill.platform.stage import Counts, StageResult
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import MANIFEST, Table, write_manifest
from echostill.platform.tables.versions import VERSIONS, Growth, version_entries
from echostill.platform.withdrawal.state import WITHDRAWN, withdrawals


@dataclass(frozen=True)
class Retried:
    """What trying the quarantine again came to."""

    accounting: Accounting
    before: int  # rows in quarantine before
    changed: bool  # whether the table's rows are others now
    left: int  # shards that have never run

    def result(self, stage: str, made: str, where: str, sentence: str) -> StageResult:
        """Return the result of a stage's retry."""
        counts: Counts = {
            **self.accounting.counts,
            "quarantined_before": self.before,
            "left": self.left,
        }
        return StageResult(stage, (made,), where, counts, sentence, not self.before)

    def describe(self, stale: Sequence[str]) -> str:
        """Say it in words.

        Args:
            stale: What was made from the table as it was before.
        """
        if not self.before:
            said = "nothing in quarantine to try again"
        else:
            said = f"{self.before} quarantined before, {self.accounting.quarantined} now"
        said += f"; {self.accounting.describe()}"
        if self.left:
            said += f"; {self.left} shard(s) have not run yet: the stage's own command runs them"
        if stale:
            said += (
                f". Made from the table as it was before: {', '.join(stale)}. The stages that made "
                "them will refuse to continue, and replace them with --overwrite"
            )
        return said


@dataclass(frozen=True)
class ShardedStage(ShardFiles):
    """A stage that fills one table shard by shard.

    ``history`` has the versions of a table that grows, the last of which has all shards; while a
    version is being made, readers find the one before.
    """

    max_error_rate: float
    events: Storage | None = None
    max_held_back_rate: float = 1.0  # of rows that wait for a person
    history: Sequence[Growth] = ()

    def run(
        self,
        payloads: Sequence[Any],
        make_worker: Callable[[], ShardWorker],
        plan: WorkerPlan,
        *,
        decode: Callable[[Any], Any] | None = None,
        progress: bool = True,
        finish: Callable[["ShardedStage", dict[int, Record]], None] | None = None,
    ) -> Accounting:
        """Run every unfinished shard on the connected Ray, then write the manifest.

        Args:
            payloads: One plain JSON value per shard, always in the same order; None for a finished
                shard that need not be computed.
            make_worker: Makes a worker; called once in each worker process.
            plan: Workers and what each reserves.
            decode: Begins to make of a payload what the worker then gets, in tasks of its own. A
                worker then has two shards at a time: one computes, one is decoded or written.
            progress: Whether to show a bar.
            finish: Called with all records before the manifest is written; may amend shards.

        Raises:
            EchostillError: The share of errors is above ``max_error_rate`` or that of rows held
                back above ``max_held_back_rate``, or a worker failed. Finished shards are kept.
        """
        with self._log("run", len(payloads), plan, progress) as log:
            records = self.finished(len(payloads))
            log.resume(records, self._cut_attempts())
            todo = [index for index in range(len(payloads)) if index not in records]
            self._check(records, bool(todo))
            with self._stream(payloads, todo, make_worker, plan, decode) as shards:
                for finished in shards:
                    records[finished["record"]["shard"]] = finished["record"]
                    log.shard(finished, records)
                    self._check(records, len(records) < len(payloads))
            if finish is not None:
                finish(self, records)
                self._check(records, running=False)
            accounting = Accounting.of(records.values(), log.resumed)
            self.declare(records, accounting, self._lost())
            log.finish(accounting, self._cut_attempts())
        return accounting

    def retry(
        self,
        payloads: Sequence[Any],
        make_worker: Callable[[], ShardWorker],
        plan: WorkerPlan,
        *,
        progress: bool = True,
        finish: Callable[["ShardedStage", dict[int, Record]], None] | None = None,
    ) -> Retried:
        """Try what lies in the quarantine of the finished shards again.

        The units that now work take their places in the parts of their shards; a table with other
        rows has another digest. Where it is cut short the table is unfinished, and the stage's
        own command finishes it.

        Args and errors are those of :meth:`run`. Of a table that is growing, the shards of the
        versions that are finished are tried.
        """
        declared = self._declared_parts()
        if declared is not None and declared < len(payloads):
            history = [growth for growth in self.history if growth.parts <= declared]
            return replace(self, history=history).retry(
                payloads[:declared], make_worker, plan, progress=progress, finish=finish
            )
        records = self.finished(len(payloads))
        before = Accounting.of(records.values(), 0)
        parts = {index: record["part"]["sha256"] for index, record in records.items()}
        left = len(payloads) - len(records)
        todo = [
            index
            for index in records
            if records[index]["quarantine"] and payloads[index] is not None
        ]
        if not todo:
            return Retried(before, 0, False, left)
        with self._log("retry", len(todo), plan, progress) as log:
            # Readers must not meet parts that their manifest does not know.
            lost = self._lost()
            self.table.delete(MANIFEST)
            self.quarantine.delete(MANIFEST)
            with self._stream(payloads, todo, make_worker, plan, None, retry=True) as shards:
                for finished in shards:
                    records[finished["record"]["shard"]] = finished["record"]
                    log.shard(finished, {index: records[index] for index in todo})
            if not left:
                if finish is not None:
                    finish(self, records)
                self._check(records, running=False)
                self.declare(records, Accounting.of(records.values(), 0), lost)
            accounting = Accounting.of(records.values(), 0)
            log.finish(accounting, self._cut_attempts())
        changed = any(parts[index] != records[index]["part"]["sha256"] for index in parts)
        return Retried(accounting, before.quarantined, changed, left)

    def accounting(self) -> Accounting:
        """Return the accounting of the finished stage."""
        manifest = Table.open(self.table, self.name).manifest
        shards = len(manifest["parts"])
        return Accounting(
            manifest["rows_in"],
            manifest["rows"],
            manifest["quarantined"],
            shards,
            shards,
            manifest.get("expected", 0),
            manifest.get("held_back", 0),
        )

    def is_finished(self) -> bool:
        """Return whether the table exists already, in its last version."""
        parts = self._declared_parts()
        return parts is not None and (len(self.history) < 2 or parts == self.history[-1].parts)

    def _declared_parts(self) -> int | None:
        """Parts of the table as it is declared; None where it is not finished."""
        if not self.table.exists(MANIFEST):
            return None
        return len(Table.open(self.table, self.name).manifest["parts"])

    def _lost(self) -> dict[str, Any]:
        """What the table lost by withdrawals, as its manifest keeps it."""
        if not self.table.exists(MANIFEST):
            return {}
        lost = withdrawals(Table.open(self.table, self.name).manifest)
        return {WITHDRAWN: lost} if lost else {}

    def declare(
        self, records: dict[int, Record], accounting: Accounting, lost: dict[str, Any]
    ) -> None:
        """Write the manifests, which makes the table exist.

        Args:
            records: Of all shards.
            accounting: Of these.
            lost: What the table lost by withdrawals, as its manifest keeps it.
        """
        held = [records[i]["quarantine"] for i in sorted(records) if records[i]["quarantine"]]
        parts = [records[index]["part"] for index in sorted(records)]
        grown = version_entries(parts, self.history)
        self.table.sweep()
        self.quarantine.sweep()
        # The quarantine's manifest first: the table's own declares the stage finished.
        write_manifest(
            self.quarantine,
            stage=self.name,
            schema=QUARANTINE_SCHEMA,
            parts=held,
            fingerprint=self.fingerprint.as_dict(),
        )
        write_manifest(
            self.table,
            stage=self.name,
            schema=self.schema,
            parts=parts,
            fingerprint=self.fingerprint.as_dict(),
            extra={
                "rows_in": accounting.rows_in,
                "quarantined": accounting.quarantined,
                **({"expected": accounting.expected} if accounting.expected else {}),
                **({"held_back": accounting.held_back} if accounting.held_back else {}),
                **({VERSIONS: grown} if grown else {}),
                **lost,
            },
        )

    def _check(self, records: dict[int, Record], running: bool) -> None:
        counts = Accounting.of(records.values(), 0)
        # While running, wait for a hundred rows: one bad file among the first few proves nothing.
        if counts.rows_in == 0 or (running and counts.rows_in < 100):
            return
        for number, limit, what, setting, remedy in (
            (
                counts.errors,
                self.max_error_rate,
                "in quarantine",
                "max_error_rate",
                "mend the input or raise max_error_rate",
            ),
            (
                counts.held_back,
                self.max_held_back_rate,
                f"held back ({self.held_back_class})",
                "max_held_back_rate",
                "change what holds them back or raise max_held_back_rate",
            ),
        ):
            rate = number / counts.rows_in
            if rate > limit:
                raise EchostillError(
                    f"{self.name}: {number} of {counts.rows_in} rows so far are {what} "
                    f"({rate:.1%}), above {setting} {limit:.1%}. See '{self.quarantine.root}'. "
                    f"Finished shards are kept: {remedy} and run the same command."
                )

    def _cut_attempts(self) -> list[int]:
        """Return, and forget, the shards whose attempts were killed before they were finished."""
        names = self.table.list("running")
        self.table.delete("running")
        return sorted(int(name.removeprefix("running/").partition("-")[0]) for name in names)

    def _log(
        self, mode: str, shards: int, plan: WorkerPlan, progress: bool
    ) -> AbstractContextManager[ShardLog]:
        bar = Progress(self.name, shards, enabled=progress)
        return ShardLog.open(self.events, bar, self.name, mode, plan)

    @contextmanager
    def _stream(
        self,
        payloads: Sequence[Any],
        todo: Sequence[int],
        make_worker: Callable[[], ShardWorker],
        plan: WorkerPlan,
        decode: Callable[[Any], Any] | None,
        retry: bool = False,
    ) -> Iterator[Iterable[dict[str, Any]]]:
        """The shards as they are finished; however that ends, their workers end with it."""
        if not todo:
            yield ()
            return
        with closing(stream(self, payloads, todo, make_worker, plan, decode, retry)) as finished:
            yield finished
