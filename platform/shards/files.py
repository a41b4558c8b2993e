"""The files of a sharded stage: a part per shard, and a record that declares the shard finished.

A shard's rows and quarantined rows are written as a part and a quarantine part, and then its
record (:mod:`.records`).
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from echostill.platform.shards.outcome import Outcome, decode_units, encode_units
from echostill.platform.shards.records import (
    Record,
    are_whole,
    delete_record,
    read_record,
    read_records,
    write_record,
)
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import decode_parquet, encode_parquet, part_record


class ShardWorker(Protocol):
    """Computes shards; made once per worker process, so that models load once."""

    def process(self, payload: Any) -> Outcome:
        """Compute one shard from its payload: plain JSON values, or what a decoder made of them."""
        ...

    def process_units(self, payload: Any, units: Sequence[int]) -> Outcome:
        """Compute the named units of a shard alone, as :meth:`process` would among the others."""
        ...


@dataclass(frozen=True)
class ShardFiles:
    """Where the shards of one stage lie.

    Attributes:
        name: Name of the stage.
        table: Folder of the table that the shards' parts make up.
        quarantine: Folder of the stage's quarantine.
        schema: Columns of the table.
        fingerprint: What the result depends on.
        expected_class: Error class of quarantined rows that were to be expected, and are no errors.
        held_back_class: Error class of quarantined rows that wait for a person, and are no errors.
    """

    name: str
    table: Storage
    quarantine: Storage
    schema: pa.Schema
    fingerprint: Fingerprint
    expected_class: str = field(default="", kw_only=True)
    held_back_class: str = field(default="", kw_only=True)

    def finished(self, shards: int) -> dict[int, Record]:
        """Return the records of the finished shards whose files are still as they were written."""
        found = read_records(self.table)
        sizes = self.table.sizes(recursive=False)
        held_sizes = self.quarantine.sizes(recursive=False)
        return {
            int(record["shard"]): record
            for record in found
            if int(record["shard"]) < shards and _is_whole(record, sizes.get, held_sizes.get)
        }

    def record(self, index: int) -> Record | None:
        """Return a shard's record, None where it is not finished or its files are damaged."""
        record = read_record(self.table, index)
        if record is None or not _is_whole(record, self.table.size, self.quarantine.size):
            return None
        return record

    def read(self, record: Record) -> Outcome:
        """Read a finished shard back."""
        held, units = record["quarantine"], record.get("units")
        return Outcome(
            decode_parquet(self.table.read(record["part"]["file"])),
            QUARANTINE_SCHEMA.empty_table()
            if held is None
            else decode_parquet(self.quarantine.read(held["file"])),
            None if units is None else decode_units(units),
            notes=record.get("notes", {}),
            digests=record.get("digests", ()),
        )

    def write(self, index: int, outcome: Outcome) -> Record:
        """Write a shard's parts and then the file that declares it finished.

        A shard that is written again is not finished meanwhile, whatever its files' sizes say.
        """
        delete_record(self.table, index)
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
        if outcome.notes:
            record["notes"] = {kind: list(texts) for kind, texts in outcome.notes.items()}
        if outcome.digests:
            record["digests"] = list(outcome.digests)
        if expected := count_expected(outcome.quarantined, self.expected_class):
            record["expected"] = expected
        if held_back := count_expected(outcome.quarantined, self.held_back_class):
            record["held_back"] = held_back
        write_record(self.table, record)
        return record

    @contextmanager
    def attempt(self, index: int) -> Iterator[None]:
        """Mark a shard as begun; the mark of an attempt that is killed stays and is counted."""
        name = f"running/{index:05d}-{uuid.uuid4().hex[:8]}"
        self.table.write(name, b"")
        yield
        self.table.delete(name)


def count_expected(quarantined: pa.Table, expected_class: str) -> int:
    """Return how many quarantined rows are of a class that was to be expected."""
    classes: list[str] = quarantined["error_class"].to_pylist()
    return classes.count(expected_class) if expected_class else 0


def _is_whole(
    record: Record,
    part_size: Callable[[str], int | None],
    held_size: Callable[[str], int | None],
) -> bool:
    """Whether a finished shard's files have the sizes they were written with."""
    held = record["quarantine"]
    return are_whole([record["part"]], part_size) and (held is None or are_whole([held], held_size))


def _part(index: int) -> str:
    return f"part-{index:05d}.parquet"
