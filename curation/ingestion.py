"""The ingest stage: files in, pool out; bad rows to quarantine, nothing decoded twice."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
from pydantic import Field

from echostill.curation.estimate import estimate
from echostill.curation.listing import list_sources
from echostill.curation.sources import (
    Failure,
    IngestSettings,
    Source,
    read_source,
)
from echostill.platform import runtime
from echostill.platform.config import StageConfig, execution
from echostill.platform.runs import claim, fingerprint
from echostill.platform.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA
from echostill.platform.shards import Outcome, Record, ShardedStage
from echostill.platform.storage import sha256
from echostill.platform.store import Plan, Store, save_configuration
from echostill.platform.tables import decode_parquet


class IngestConfig(StageConfig, IngestSettings):
    """Ingest of image folders, file lists, manifests, archives, DICOM, videos and volumes."""

    files_per_shard: int = Field(1024, ge=1, description="Files that one part of the pool holds.")
    bytes_per_shard: int = Field(
        2**30,
        ge=1,
        description="Bytes of cines, volumes and archives after which a part of the pool is full.",
    )
    workers: int | None = execution(None, "Ingest workers; default as many as fit.", ge=1)
    max_error_rate: float = execution(0.05, "Largest share of quarantined rows.", ge=0, le=1)


@dataclass(frozen=True)
class IngestWorker:
    """Reads the files of one shard; each file is a unit that can be read again by itself."""

    settings: IngestSettings

    def process(self, payload: Any) -> Outcome:
        """Read a list of sources (plain values) into pool rows and quarantine rows."""
        started = time.perf_counter()
        rows: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        units = []
        for values in payload:
            before = len(rows), len(refused)
            for item in read_source(Source(**values), self.settings):
                if isinstance(item, Failure):
                    refused.append(item.row())
                else:
                    rows.append(item)
            units.append((len(rows) - before[0], len(refused) - before[1]))
        return Outcome(
            pa.Table.from_pylist(rows, schema=POOL_SCHEMA),
            pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA),
            units,
            {"read": time.perf_counter() - started},
        )

    def process_units(self, payload: Any, units: Sequence[int]) -> Outcome:
        """Read the sources of those numbers alone."""
        return self.process([payload[number] for number in units])


@dataclass(frozen=True)
class Prepared:
    """The stage with its shards, before any work."""

    stage: ShardedStage
    shards: list[list[dict[str, Any]]]  # sources as plain values

    @property
    def files(self) -> int:
        """Number of files over all shards."""
        return sum(len(shard) for shard in self.shards)


def ingest(config: IngestConfig, *, overwrite: bool = False) -> str:
    """Read every source into the pool.

    Returns:
        What was done, in words: files, rows in, rows out, quarantined.
    """
    ready = _prepare(config, overwrite)
    if ready.stage.is_finished():
        return f"already done: {ready.files} files; {ready.stage.accounting().describe()}"
    done = ready.stage.run(
        ready.shards,
        _MakeWorker(_settings(config)),
        _connected_plan(config, len(ready.shards)),
        progress=config.progress,
        finish=move_repeated_ids,
    )
    return f"{ready.files} files; {done.describe()}"


def retry_ingest(config: IngestConfig) -> str:
    """Read the quarantined files again, after they were mended or a decoder was installed.

    What now works takes its place in the pool, as if it had worked the first time.

    Returns:
        What was done, in words, and what was made from the pool as it was before.
    """
    store = Store(config.store)
    ready = _prepare(config, overwrite=False)
    before = store.open_pool().digest if ready.stage.is_finished() else None
    done = ready.stage.retry(
        ready.shards,
        _MakeWorker(_settings(config)),
        _connected_plan(config, len(ready.shards)),
        progress=config.progress,
        finish=move_repeated_ids,
    )
    return done.describe(store.made_from(before) if before and done.changed else [])


def _prepare(config: IngestConfig, overwrite: bool) -> Prepared:
    store = Store(config.store)
    shards = _shards(config)
    wanted = _fingerprint(config, shards)
    claim(store.pool(), wanted, "a pool", overwrite)
    stage = ShardedStage(
        name="ingest",
        table=store.pool(),
        quarantine=store.quarantine("ingest"),
        schema=POOL_SCHEMA,
        fingerprint=wanted,
        max_error_rate=config.max_error_rate,
        events=store.events(),
    )
    if not stage.is_finished():
        save_configuration(store.pool(), config)
    return Prepared(stage, [[asdict(source) for source in shard] for shard in shards])


def _connected_plan(config: IngestConfig, shards: int) -> runtime.WorkerPlan:
    runtime.connect(config.address)
    # Decoding is the CPU's work: GPUs of the cluster are left to the models.
    cpus, _ = runtime.cluster_resources()
    return runtime.plan_workers(config.workers, shards, cpus)


def _settings(config: IngestConfig) -> IngestSettings:
    return IngestSettings(**{name: getattr(config, name) for name in IngestSettings.model_fields})


def plan_ingest(config: IngestConfig) -> Plan:
    """Say what :func:`ingest` would do."""
    store = Store(config.store)
    shards = _shards(config)
    files = sum(len(shard) for shard in shards)
    cpus, _ = runtime.local_resources()
    out = Plan("ingest")
    out.add("sources", f"{files} files (a cine is one file and gives a row per frame)")
    out.add("shards", f"{len(shards)} of up to {config.files_per_shard} files")
    out.add("workers", runtime.plan_workers(config.workers, len(shards), cpus).describe())
    out.add("size", estimate([source for shard in shards for source in shard], config).describe())
    done = len(store.pool().list("done"))
    out.add("already done", f"{done} of {len(shards)} shards")
    out.add("result", store.pool().root)
    return out


@dataclass(frozen=True)
class _MakeWorker:
    settings: IngestSettings

    def __call__(self) -> IngestWorker:
        return IngestWorker(self.settings)


def _shards(config: IngestConfig) -> list[list[Source]]:
    """Cut the sources into shards: by files, and by bytes, so that cines do not fill the memory."""
    shards: list[list[Source]] = []
    held = 0
    for source in list_sources(config):
        full = bool(shards) and (
            len(shards[-1]) >= config.files_per_shard or held + source.size > config.bytes_per_shard
        )
        if not shards or full:
            shards.append([])
            held = 0
        shards[-1].append(source)
        held += source.size
    return shards


def _fingerprint(config: IngestConfig, shards: list[list[Source]]) -> Any:
    # What may change while the pool stays the same: where the files lie, and what mending changes.
    passing = {"file", "size", "problem"}
    listing = [
        [
            {key: value for key, value in asdict(source).items() if key not in passing}
            for source in shard
        ]
        for shard in shards
    ]
    digest = sha256(json.dumps(listing, sort_keys=True).encode())
    return fingerprint(config, inputs={"files": digest})


def move_repeated_ids(stage: ShardedStage, records: dict[int, Record]) -> None:
    """Move rows whose id an earlier shard or row has already to the quarantine.

    Ids come from content and origin: the same DICOM instance in two files is one image. A shard is
    amended by writing it again, and is unfinished meanwhile.
    """
    seen: set[str] = set()
    for index in sorted(records):
        part = stage.table.read(records[index]["part"]["file"])
        keep = []
        for image_id in decode_parquet(part, ["image_id"])["image_id"].to_pylist():
            keep.append(image_id not in seen)
            seen.add(image_id)
        if all(keep):
            continue
        outcome = stage.read(records[index])
        repeated = outcome.rows.filter(pa.array([not kept for kept in keep])).to_pylist()
        refused = [
            Failure(
                row["source"],
                row["image_id"],
                "RepeatedId",
                "the same image (the same DICOM instance and frame) was read already",
            ).row()
            for row in repeated
        ]
        refusals = pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA)
        records[index] = stage.write(index, outcome.moved(keep, refusals))
