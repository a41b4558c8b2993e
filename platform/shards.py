"""Sharded stages: many independent shards become the parts of one table, each finished for good.

A shard's worker returns its rows and its quarantined rows. They are written as a part and a
quarantine part, and then ``done/<shard>.json`` says so; a shard is finished when that file is.
Resuming runs the shards without one. What was running when something died is run again: at most
one shard per worker. When every shard is finished, the manifest makes the table exist.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from echostill.platform import runtime
from echostill.platform.errors import EchostillError
from echostill.platform.progress import Progress
from echostill.platform.runs import Fingerprint
from echostill.platform.schemas import QUARANTINE_SCHEMA
from echostill.platform.storage import Storage
from echostill.platform.tables import (
    MANIFEST,
    Table,
    encode_parquet,
    part_record,
    write_manifest,
)


@dataclass(frozen=True)
class Outcome:
    """What became of a shard: rows of the table and rows of the quarantine."""

    rows: pa.Table
    quarantined: pa.Table


class ShardWorker(Protocol):
    """Computes shards; made once per worker process, so that models load once."""

    def process(self, payload: Any) -> Outcome:
        """Compute one shard from its payload (plain JSON values)."""
        ...


@dataclass(frozen=True)
class Accounting:
    """Row counts of a stage."""

    rows_in: int
    rows_out: int
    quarantined: int
    shards: int
    shards_resumed: int

    def describe(self) -> str:
        """Say the accounting in words."""
        resumed = f" ({self.shards_resumed} finished earlier)" if self.shards_resumed else ""
        return (
            f"{self.rows_in} rows in = {self.rows_out} rows out + {self.quarantined} quarantined; "
            f"{self.shards} shard(s){resumed}"
        )


@dataclass(frozen=True)
class ShardedStage:
    """A stage that fills one table shard by shard."""

    name: str
    table: Storage
    quarantine: Storage
    schema: pa.Schema
    fingerprint: Fingerprint
    max_error_rate: float

    def finished(self, shards: int) -> dict[int, dict[str, Any]]:
        """Return the records of the finished shards whose files are still as they were written."""
        records = {}
        for name in self.table.list("done"):
            record = json.loads(self.table.read(name))
            index = int(record["shard"])
            whole = self.table.size(record["part"]["file"]) == record["part"]["bytes"]
            if record["quarantine"] is not None:
                size = self.quarantine.size(record["quarantine"]["file"])
                whole = whole and size == record["quarantine"]["bytes"]
            if whole and index < shards:
                records[index] = record
        return records

    def write(self, index: int, outcome: Outcome) -> dict[str, Any]:
        """Write a shard's parts and then the file that declares it finished."""
        quarantine = None
        name = f"part-{index:05d}.parquet"
        if outcome.quarantined.num_rows:
            data = encode_parquet(outcome.quarantined.cast(QUARANTINE_SCHEMA))
            self.quarantine.write(name, data)
            quarantine = part_record(name, outcome.quarantined.num_rows, data)
        data = encode_parquet(outcome.rows.cast(self.schema))
        self.table.write(name, data)
        record = {
            "shard": index,
            "part": part_record(name, outcome.rows.num_rows, data),
            "quarantine": quarantine,
            "fingerprint": self.fingerprint.digest,
        }
        self.table.write(f"done/{index:05d}.json", json.dumps(record, sort_keys=True).encode())
        return record

    def run(
        self,
        payloads: Sequence[Any],
        make_worker: Callable[[], ShardWorker],
        plan: runtime.WorkerPlan,
        *,
        progress: bool = True,
        finish: Callable[["ShardedStage", dict[int, dict[str, Any]]], None] | None = None,
    ) -> Accounting:
        """Run every unfinished shard on the connected Ray, then write the manifest.

        Args:
            payloads: One plain JSON value per shard, always in the same order.
            make_worker: Makes a worker; called once in each worker process.
            plan: Workers and what each reserves.
            progress: Whether to show a bar.
            finish: Called with all records before the manifest is written; may amend shards.

        Raises:
            EchostillError: The share of quarantined rows is above ``max_error_rate``, or a worker
                failed. Finished shards are kept.
        """
        records = self.finished(len(payloads))
        resumed = len(records)
        todo = [index for index in range(len(payloads)) if index not in records]
        with Progress(self.name, len(payloads), enabled=progress) as bar:
            bar.update(resumed)
            self._check(records, bool(todo))
            for record in self._stream(todo, payloads, make_worker, plan):
                records[record["shard"]] = record
                bar.advance(note=_note(records))
                self._check(records, len(records) < len(payloads))
        if finish is not None:
            finish(self, records)
            self._check(records, running=False)
        accounting = _account(records, resumed)
        parts = [records[index]["part"] for index in sorted(records)]
        held = [records[i]["quarantine"] for i in sorted(records) if records[i]["quarantine"]]
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
            extra={"rows_in": accounting.rows_in, "quarantined": accounting.quarantined},
        )
        return accounting

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

    def _check(self, records: dict[int, dict[str, Any]], running: bool) -> None:
        counts = _account(records, 0)
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

    def _stream(
        self,
        todo: Sequence[int],
        payloads: Sequence[Any],
        make_worker: Callable[[], ShardWorker],
        plan: runtime.WorkerPlan,
    ) -> Iterator[dict[str, Any]]:
        """Run shards through a Ray Data actor pool; yield each record as its shard finishes."""
        if not todo:
            return
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        items = [{"shard": index, "payload": json.dumps(payloads[index])} for index in todo]
        stage = self
        shards = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _ShardActor,
            fn_constructor_args=(stage, make_worker, plan.threads),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(plan.workers, len(items))),
            num_cpus=plan.cpus_per_worker,
            num_gpus=plan.gpus_per_worker or None,
        )
        try:
            for batch in shards.iter_batches(batch_size=None, prefetch_batches=0):
                for text in batch["record"]:
                    yield json.loads(str(text))
        except (ray.exceptions.RayError, SystemError) as error:
            raise EchostillError(
                f"{self.name}: a worker failed: {_cause(error)}. Finished shards are kept: "
                "the same command continues."
            ) from error


class _ShardActor:
    """The Ray Data actor: one worker, fed one shard at a time."""

    def __init__(
        self, stage: ShardedStage, make_worker: Callable[[], ShardWorker], threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self._stage, self._worker = stage, make_worker()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        records = []
        for index, payload in zip(batch["shard"], batch["payload"], strict=True):
            outcome = self._worker.process(json.loads(str(payload)))
            records.append(json.dumps(self._stage.write(int(index), outcome)))
        return {"record": records}


def _account(records: dict[int, dict[str, Any]], resumed: int) -> Accounting:
    out = sum(record["part"]["rows"] for record in records.values())
    held = sum(r["quarantine"]["rows"] for r in records.values() if r["quarantine"])
    return Accounting(out + held, out, held, len(records), resumed)


def _note(records: dict[int, dict[str, Any]]) -> str:
    counts = _account(records, 0)
    return f"{counts.rows_out} rows, {counts.quarantined} quarantined"


def _cause(error: BaseException) -> str:
    """The worker's own error out of what Ray wraps around it, a remote traceback with advice."""
    lines = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt)\w*: .+$", str(error), re.MULTILINE)
    own = [line for line in lines if not line.startswith(("ray.", "UserCodeException"))]
    return own[-1].strip().rstrip(".") if own else type(error).__name__
