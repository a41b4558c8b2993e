"""The ingest stage: files in, pool out; bad rows to quarantine, nothing decoded twice."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from echostill.curation.identifiers import Veil, check_key, key_check, run_key, spread
from echostill.curation.review import (
    NEEDS_REVIEW,
    Desk,
    approved_pixels,
    prepare_pictures,
    reopen,
    waiting_in,
    write_review,
)
from echostill.curation.sources import (
    Failure,
    IngestSettings,
    Source,
    beginning,
    list_sources,
    read_key,
    read_source,
)
from echostill.platform import runtime
from echostill.platform.config import StageConfig, execution
from echostill.platform.errors import EchostillError
from echostill.platform.progress import console
from echostill.platform.runs import claim, fingerprint
from echostill.platform.schemas import POOL_SCHEMA, QUARANTINE_SCHEMA
from echostill.platform.shards import Outcome, ShardedStage
from echostill.platform.storage import sha256
from echostill.platform.store import Plan, Store, describe_bytes, save_configuration

STAGED_BYTES_PER_PIXEL = 0.6  # grey ultrasound as PNG, for the plan's estimate only


class IngestConfig(StageConfig, IngestSettings):
    """Ingest of image folders, file lists, manifests and DICOM files."""

    files_per_shard: int = Field(1024, ge=1, description="Files that one part of the pool holds.")
    workers: int | None = execution(None, "Ingest workers; default as many as fit.", ge=1)
    max_error_rate: float = execution(0.05, "Largest share of quarantined rows.", ge=0, le=1)


@dataclass(frozen=True)
class IngestWorker:
    """Reads the files of one shard."""

    settings: IngestSettings
    veil: Veil
    desk: Desk
    samples: dict[str, int]  # frames for the contact sheet, by shard

    def process(self, payload: Any) -> Outcome:
        """Read a list of sources (plain values) into pool rows and quarantine rows."""
        rows: list[dict[str, Any]] = []
        refused: list[dict[str, Any]] = []
        shard = shard_name(payload)
        self.desk.sample = self.samples.get(shard, 0)
        for values in payload:
            source = Source(**values)
            for item in read_source(source, self.settings, self.veil.key, self.desk):
                if isinstance(item, Failure):
                    refused.append(self.veil.refusal(item.row(), source.group))
                else:
                    rows.append(self.veil.row(item))
        self.desk.finish(shard)
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
    veil = _veil(config, shards)
    shown = config.model_copy(
        update=veil.values(config.model_dump(), ("source", "exclude", "root"))
    )
    wanted = _fingerprint(shown, shards, veil)
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
    approved = approved_pixels(store)
    reopened = reopen(stage, len(shards), approved)
    if stage.is_finished():
        return f"already done: {files} files; {stage.accounting().describe()}"
    save_configuration(store.pool(), shown)
    runtime.connect(config.address)
    # Decoding is the CPU's work: GPUs of the cluster are left to the models.
    cpus, _ = runtime.cluster_resources()
    where = runtime.plan_workers(config.workers, len(shards), cpus)
    settings = IngestSettings(**{name: getattr(config, name) for name in _setting_names()})
    held = 0

    def finish(stage: ShardedStage, records: dict[int, dict[str, Any]]) -> None:
        nonlocal held
        move_repeated_ids(stage, records)
        held = write_review(store, stage, records)

    try:
        done = stage.run(
            shards,
            _MakeWorker(settings, veil, _desk(config, store, approved), _samples(config, shards)),
            where,
            progress=config.progress,
            finish=finish,
        )
    except EchostillError as error:
        raise _with_review(error, stage, len(shards)) from error
    said = f"{files} files; {done.describe()}"
    if reopened:
        said += f"; {reopened} shard(s) read again for approved frames"
    return f"{said}; {held} wait for `echostill review {config.store}`" if held else said


def _veil(config: IngestConfig, shards: list[list[dict[str, Any]]]) -> Veil:
    """Return the key for identifiers, the user's or this run's own, and what it hides."""
    key = read_key(config)
    hidden = config.deidentify.sources
    if key is not None:
        check_key(key)
        return Veil(key, hidden != "names")
    files = [source["file"] for shard in shards for source in shard if not source["problem"]]
    return Veil(run_key([beginning(file) for file in spread(files)]), hidden == "hashed")


def _desk(config: IngestConfig, store: Store, approved: dict[str, str]) -> Desk:
    settings = config.deidentify
    if not settings.review_pixels and not settings.contact_sheet:
        return Desk(approved)
    pictures = prepare_pictures(store)
    console.print(
        f"warning: identifiable pixels are written to '{pictures.root}': keep it as the original "
        "files are kept, and delete it after the review.",
        markup=False,
        soft_wrap=True,
    )
    return Desk(approved, pictures, settings.review_pixels)


def _samples(config: IngestConfig, shards: list[list[dict[str, Any]]]) -> dict[str, int]:
    """Share the frames of the contact sheet out over the shards."""
    wanted = config.deidentify.contact_sheet
    names = [shard_name(shard) for shard in spread(shards, wanted)] if wanted else []
    return {
        name: wanted // len(names) + (number < wanted % len(names))
        for number, name in enumerate(names)
    }


def _with_review(error: EchostillError, stage: ShardedStage, shards: int) -> EchostillError:
    """Say how many of the quarantined rows only wait for review."""
    held = sum(waiting_in(stage, record) for record in stage.finished(shards).values())
    if not held:
        return error
    return EchostillError(
        f"{error} {held} of the rows in quarantine were held back by de-identification "
        f"({NEEDS_REVIEW}): they count as errors until they are approved."
    )


def reveal(config: IngestConfig, hashes: Sequence[str]) -> dict[str, str]:
    """Say which files stand behind hashed names, for who has the key and the files.

    Args:
        config: Of the ingest; its sources are listed, and its key is used.
        hashes: Values of ``source``, with or without the number of a frame.

    Returns:
        Name by hash, as far as found.
    """
    shards = _shards(config)
    veil = replace(_veil(config, shards), hidden=True)
    names = {veil.name(source["name"]): source["name"] for shard in shards for source in shard}
    found = {}
    for given in hashes:
        stem, mark, frame = given.partition("#")
        if stem in names:
            found[given] = f"{names[stem]}{mark}{frame}"
    return found


def plan_ingest(config: IngestConfig) -> Plan:
    """Say what :func:`ingest` would do."""
    store = Store(config.store)
    shards = _shards(config)
    files = sum(len(shard) for shard in shards)
    cpus, _ = runtime.local_resources()
    out = Plan("ingest")
    out.add("sources", f"{files} files (a DICOM cine is one file and gives a row per frame)")
    out.add("shards", f"{len(shards)} of up to {config.files_per_shard} files")
    out.add("workers", runtime.plan_workers(config.workers, len(shards), cpus).describe())
    size = files * config.stage_side**2 * STAGED_BYTES_PER_PIXEL
    out.add("size", f"about {describe_bytes(size)} or less, staged at {config.stage_side} pixels")
    done = len(store.pool().list("done"))
    names = "as keyed hashes" if _veil(config, shards).hidden else "as they are"
    pixels = "the sector alone, doubtful frames held back"
    if config.deidentify.pixels == "off":
        pixels = "as they are (deidentify.pixels is off)"
    out.add("identifiers", f"pixels: {pixels}; file names and groups: {names}")
    out.add("already done", f"{done} of {len(shards)} shards")
    out.add("result", store.pool().root)
    return out


@dataclass(frozen=True)
class _MakeWorker:
    settings: IngestSettings
    veil: Veil
    desk: Desk
    samples: dict[str, int]

    def __call__(self) -> IngestWorker:
        return IngestWorker(self.settings, self.veil, self.desk, self.samples)


def _setting_names() -> list[str]:
    return list(IngestSettings.model_fields)


def _shards(config: IngestConfig) -> list[list[dict[str, Any]]]:
    sources = [asdict(source) for source in list_sources(config)]
    step = config.files_per_shard
    return [sources[start : start + step] for start in range(0, len(sources), step)]


def _fingerprint(config: IngestConfig, shards: list[list[dict[str, Any]]], veil: Veil) -> Any:
    listing = [
        {key: veil.name(str(value)) for key, value in source.items() if key != "file"}
        for shard in shards
        for source in shard
    ]
    digest = sha256(json.dumps(listing, sort_keys=True).encode())
    return fingerprint(config, inputs={"files": digest, "key check": key_check(veil.key)})


def shard_name(payload: list[dict[str, Any]]) -> str:
    """Return a name for a shard that depends on its files alone, and tells none of them."""
    return sha256(json.dumps(payload, sort_keys=True).encode())[:16]


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
