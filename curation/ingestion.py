"""The ingest stage: files in, pool out; bad rows to quarantine, nothing decoded twice."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
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
from echostill.platform.shards import Outcome, ShardedStage
from echostill.platform.storage import sha256
from echostill.platform.store import Plan, Store, save_configuration


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
    """Reads the files of one shard."""

    settings: IngestSettings

    def process(self, payload: Any) -> Outcome:
        """Read a list of sources (plain values) into pool rows and quarantine rows."""
        rows: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        for values in payload:
            for item in read_source(Source(**values), self.settings):
                if isinstance(item, Failure):
                    refused.append(item.row())
                else:
                    rows.append(item)
        return Outcome(
            pa.Table.from_pylist(rows, schema=POOL_SCHEMA),
            pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA),
        )


def ingest(config: IngestConfig, *, overwrite: bool = False) -> str:
    """Read every source into the pool.

    Returns:
        What was done, in words: files, rows in, rows out, quarantined.
    """
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
    )
    files = sum(len(shard) for shard in shards)
    if stage.is_finished():
        return f"already done: {files} files; {stage.accounting().describe()}"
    save_configuration(store.pool(), config)
    runtime.connect(config.address)
    # Decoding is the CPU's work: GPUs of the cluster are left to the models.
    cpus, _ = runtime.cluster_resources()
    where = runtime.plan_workers(config.workers, len(shards), cpus)
    settings = IngestSettings(**{name: getattr(config, name) for name in _setting_names()})
    done = stage.run(
        [[asdict(source) for source in shard] for shard in shards],
        _MakeWorker(settings),
        where,
        progress=config.progress,
        finish=move_repeated_ids,
    )
    return f"{files} files; {done.describe()}"


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


def _setting_names() -> list[str]:
    return list(IngestSettings.model_fields)


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
    listing = [
        [{key: value for key, value in asdict(source).items() if key != "file"} for source in shard]
        for shard in shards
    ]
    digest = sha256(json.dumps(listing, sort_keys=True).encode())
    return fingerprint(config, inputs={"files": digest})


def move_repeated_ids(stage: ShardedStage, records: dict[int, dict[str, Any]]) -> None:
    """Move rows whose id an earlier shard or row has already to the quarantine.

    Ids come from content and origin: the same DICOM instance in two files is one image. A shard is
    amended by writing it again; killed between its files, it is found damaged and read anew.
    """
    seen: set[str] = set()
    for index in sorted(records):
        ids = _read(stage, index, ["image_id"])["image_id"].to_pylist()
        keep = []
        for image_id in ids:
            keep.append(image_id not in seen)
            seen.add(image_id)
        if all(keep):
            continue
        table = _read(stage, index)
        repeated = table.filter(pa.array([not kept for kept in keep])).to_pylist()
        refused = [
            Failure(
                row["source"],
                row["image_id"],
                "RepeatedId",
                "the same image (the same DICOM instance and frame) was read already",
            ).row()
            for row in repeated
        ]
        held = records[index]["quarantine"]
        earlier = QUARANTINE_SCHEMA.empty_table()
        if held is not None:
            earlier = pq.read_table(
                stage.quarantine.arrow_path(held["file"]),
                filesystem=stage.quarantine.filesystem,
                partitioning=None,
            )
        outcome = Outcome(
            table.filter(pa.array(keep)),
            pa.concat_tables([earlier, pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA)]),
        )
        records[index] = stage.write(index, outcome)


def _read(stage: ShardedStage, index: int, columns: list[str] | None = None) -> pa.Table:
    return pq.read_table(
        stage.table.arrow_path(f"part-{index:05d}.parquet"),
        columns=columns,
        filesystem=stage.table.filesystem,
        partitioning=None,
    )
