"""The files of a sharded stage: a part per shard, and a record that declares the shard finished.

A shard's rows and quarantined rows are written as a part and a quarantine part, and then
``done/<shard>.json`` says so; a shard is finished when that file is there and its parts have the
sizes they were written with.
"""

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from echostill.platform.shards.outcome import Outcome, decode_units, encode_units
from echostill.platform.tables.fingerprint import Fingerprint
from echostill.platform.tables.schemas import QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.table import decode_parquet, encode_parquet, part_record

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
class ShardFiles:
    """Where the shards of one stage lie.

    Attributes:
        name: Name of the stage.
        table: Folder of the table that the shards' parts make up.
        quarantine: Folder of the stage's quarantine.
        schema: Columns of the table.
        fingerprint: What the result depends on.
    """

    name: str
    table: Storage
    quarantine: Storage
    schema: pa.Schema
    fingerprint: Fingerprint

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
