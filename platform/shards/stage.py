"""Sharded stages: many independent shards become the parts of one table, each finished for good.

A shard's worker returns its rows and its quarantined rows. They are written as a part and a
quarantine part, and then ``done/<shard>.json`` says so; a shard is finished when that file is.
Resuming runs the shards without one. What was running when something died is run again: at most
one shard per worker. When every shard is finished, the manifest makes the table exist.

What lies in quarantine can be tried again (:meth:`ShardedStage.retry`): the units it came from are
done anew and their rows take their places, as if they had worked the first time.
"""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from echostill.platform import runtime
from echostill.platform.errors import EchostillError
from echostill.platform.progress import Progress
from echostill.platform.shards.events import EventLog
from echostill.platform.shards.log import Accounting, ShardLog
from echostill.platform.shards.outcome import Outcome, decode_units, encode_units
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    decode_parquet,
    encode_parquet,
    part_record,
    write_manifest,
)

__all__ = ["Accounting", "Outcome", "Record", "Retried", "ShardWorker", "ShardedStage"]

Record = dict[str, Any]
READS_AT_ONCE = 16  # of small files, which on an object store take a round trip each


class ShardWorker(Protocol):
    """Computes shards; made once per worker process, so that models load once."""

    def process(self, payload: Any) -> Outcome:
        """Compute one shard from its payload: plain JSON values, or what a decoder made of them."""
        ...

    def process_units(self, payload: Any, units: Sequence[int]) -> Outcome:
        """Compute the named units of a shard alone, as :meth:`process` would among the others."""
        ...


@dataclass(frozen=True)
class Retried:
    """What trying the quarantine again came to."""

    accounting: Accounting
    before: int  # rows in quarantine before
    changed: bool  # whether the table's rows are others now
    left: int  # shards that have never run

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
class ShardedStage:
    """A stage that fills one table shard by shard."""

    name: str
    table: Storage
    quarantine: Storage
    schema: pa.Schema
    fingerprint: Fingerprint
    max_error_rate: float
    events: Storage | None = None

    def finished(self, shards: int) -> dict[int, Record]:
        """Return the records of the finished shards whose files are still as they were written."""
        names = self.table.list("done")
        sizes = self.table.sizes(recursive=False)
        held_sizes = self.quarantine.sizes(recursive=False)
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            found = [json.loads(data) for data in pool.map(self.table.read, names)]
        return {
            int(record["shard"]): record
            for record in found
            if int(record["shard"]) < shards and _is_whole(record, sizes.get, held_sizes.get)
        }

    def record(self, index: int) -> Record | None:
        """Return a shard's record, None where it is not finished or its files are damaged."""
        name = _done(index)
        if not self.table.exists(name):
            return None
        record: Record = json.loads(self.table.read(name))
        return record if _is_whole(record, self.table.size, self.quarantine.size) else None

    def read(self, record: Record) -> Outcome:
        """Read a finished shard back."""
        held, units = record["quarantine"], record.get("units")
        return Outcome(
            decode_parquet(self.table.read(record["part"]["file"])),
            QUARANTINE_SCHEMA.empty_table()
            if held is None
            else decode_parquet(self.quarantine.read(held["file"])),
            None if units is None else decode_units(units),
        )

    def write(self, index: int, outcome: Outcome) -> Record:
        """Write a shard's parts and then the file that declares it finished.

        A shard that is written again is not finished meanwhile, whatever its files' sizes say.
        """
        self.table.delete(_done(index))
        quarantine = None
        name = _part(index)
        if outcome.quarantined.num_rows:
            data = encode_parquet(outcome.quarantined.cast(QUARANTINE_SCHEMA))
            self.quarantine.write(name, data)
            quarantine = part_record(name, outcome.quarantined.num_rows, data)
        else:
            self.quarantine.delete(name)  # an earlier attempt's, where there is one
        data = encode_parquet(outcome.rows.cast(self.schema))
        self.table.write(name, data)
        record = {
            "shard": index,
            "part": part_record(name, outcome.rows.num_rows, data),
            "quarantine": quarantine,
            "units": None if outcome.units is None else encode_units(outcome),
            "fingerprint": self.fingerprint.digest,
        }
        self.table.write(_done(index), json.dumps(record, sort_keys=True).encode())
        return record

    @contextmanager
    def attempt(self, index: int) -> Iterator[None]:
        """Mark a shard as begun; the mark of an attempt that is killed stays and is counted."""
        name = f"running/{index:05d}-{uuid.uuid4().hex[:8]}"
        self.table.write(name, b"")
        yield
        self.table.delete(name)

    def run(
        self,
        payloads: Sequence[Any],
        make_worker: Callable[[], ShardWorker],
        plan: runtime.WorkerPlan,
        *,
        decode: Callable[[Any], bytes] | None = None,
        progress: bool = True,
        finish: Callable[["ShardedStage", dict[int, Record]], None] | None = None,
    ) -> Accounting:
        """Run every unfinished shard on the connected Ray, then write the manifest.

        Args:
            payloads: One plain JSON value per shard, always in the same order.
            make_worker: Makes a worker; called once in each worker process.
            plan: Workers and what each reserves.
            decode: Where the plan has decoders: makes of a payload what the worker then gets.
            progress: Whether to show a bar.
            finish: Called with all records before the manifest is written; may amend shards.

        Raises:
            EchostillError: The share of quarantined rows is above ``max_error_rate``, or a worker
                failed. Finished shards are kept.
        """
        with self._log("run", len(payloads), plan, progress) as log:
            records = self.finished(len(payloads))
            log.resume(records, self._cut_attempts())
            todo = {index: payloads[index] for index in range(len(payloads))}
            todo = {index: value for index, value in todo.items() if index not in records}
            self._check(records, bool(todo))
            for told in self._stream(todo, make_worker, plan, decode):
                records[told["record"]["shard"]] = told["record"]
                log.shard(told, records)
                self._check(records, len(records) < len(payloads))
            if finish is not None:
                finish(self, records)
                self._check(records, running=False)
            accounting = Accounting.of(records.values(), log.resumed)
            self._declare(records, accounting)
            log.finish(accounting, self._cut_attempts())
        return accounting

    def retry(
        self,
        payloads: Sequence[Any],
        make_worker: Callable[[], ShardWorker],
        plan: runtime.WorkerPlan,
        *,
        progress: bool = True,
        finish: Callable[["ShardedStage", dict[int, Record]], None] | None = None,
    ) -> Retried:
        """Try what lies in the quarantine of the finished shards again.

        The units that now work take their places in the parts of their shards; a table with other
        rows has another digest. Where it is cut short the table is unfinished, and the stage's
        own command finishes it.

        Args and errors are those of :meth:`run`.
        """
        records = self.finished(len(payloads))
        before = Accounting.of(records.values(), 0)
        parts = {index: record["part"]["sha256"] for index, record in records.items()}
        left = len(payloads) - len(records)
        todo = {index: payloads[index] for index in records if records[index]["quarantine"]}
        if not todo:
            return Retried(before, 0, False, left)
        with self._log("retry", len(todo), plan, progress) as log:
            # Readers must not meet parts that their manifest does not know.
            self.table.delete(MANIFEST)
            self.quarantine.delete(MANIFEST)
            for told in self._stream(todo, make_worker, plan, None, retry=True):
                records[told["record"]["shard"]] = told["record"]
                log.shard(told, {index: records[index] for index in todo})
            if not left:
                if finish is not None:
                    finish(self, records)
                self._check(records, running=False)
                self._declare(records, Accounting.of(records.values(), 0))
            accounting = Accounting.of(records.values(), 0)
            log.finish(accounting, self._cut_attempts())
        changed = any(parts[index] != records[index]["part"]["sha256"] for index in parts)
        return Retried(accounting, before.quarantined, changed, left)

    def accounting(self) -> Accounting:
        """Return the accounting of the finished stage."""
        manifest = Table.open(self.table, self.name).manifest
        shards = len(manifest["parts"])
        return Accounting(
            manifest["rows_in"], manifest["rows"], manifest["quarantined"], shards, shards
        )

    def is_finished(self) -> bool:
        """Return whether the table exists already."""
        return self.table.exists(MANIFEST)

    def _declare(self, records: dict[int, Record], accounting: Accounting) -> None:
        held = [records[i]["quarantine"] for i in sorted(records) if records[i]["quarantine"]]
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
            parts=[records[index]["part"] for index in sorted(records)],
            fingerprint=self.fingerprint.as_dict(),
            extra={"rows_in": accounting.rows_in, "quarantined": accounting.quarantined},
        )

    def _check(self, records: dict[int, Record], running: bool) -> None:
        counts = Accounting.of(records.values(), 0)
        # While running, wait for a hundred rows: one bad file among the first few proves nothing.
        if counts.rows_in == 0 or (running and counts.rows_in < 100):
            return
        rate = counts.quarantined / counts.rows_in
        if rate > self.max_error_rate:
            raise EchostillError(
                f"{self.name}: {counts.quarantined} of {counts.rows_in} rows so far are in "
                f"quarantine ({rate:.1%}), above max_error_rate {self.max_error_rate:.1%}. "
                f"See '{self.quarantine.root}'. Finished shards are kept: mend the input or raise "
                "max_error_rate and run the same command."
            )

    def _cut_attempts(self) -> list[int]:
        """Return, and forget, the shards whose attempts were killed before they were finished."""
        names = self.table.list("running")
        self.table.delete("running")
        return sorted(int(name.removeprefix("running/").partition("-")[0]) for name in names)

    def _log(self, mode: str, shards: int, plan: runtime.WorkerPlan, progress: bool) -> ShardLog:
        log = None if self.events is None else EventLog(self.events, self.name)
        return ShardLog(log, Progress(self.name, shards, enabled=progress), mode, plan)

    def _stream(
        self,
        todo: dict[int, Any],
        make_worker: Callable[[], ShardWorker],
        plan: runtime.WorkerPlan,
        decode: Callable[[Any], bytes] | None,
        retry: bool = False,
    ) -> Iterable[dict[str, Any]]:
        from echostill.platform.shards.run import stream

        return stream(self, todo, make_worker, plan, decode, retry) if todo else ()


def _is_whole(
    record: Record,
    part_size: Callable[[str], int | None],
    held_size: Callable[[str], int | None],
) -> bool:
    """Whether a finished shard's files have the sizes they were written with."""
    part, held = record["part"], record["quarantine"]
    whole = part_size(part["file"]) == part["bytes"]
    return whole and (held is None or held_size(held["file"]) == held["bytes"])


def _part(index: int) -> str:
    return f"part-{index:05d}.parquet"


def _done(index: int) -> str:
    return f"done/{index:05d}.json"
