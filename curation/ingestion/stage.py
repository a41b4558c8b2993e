"""The ingest stage: files into the pool, each decoded once; bad rows go to quarantine."""

from dataclasses import dataclass, replace
from functools import partial

from pydantic import field_validator

from echostill.curation.deidentification.decisions import approved_pixels
from echostill.curation.deidentification.pseudonyms import Pseudonymiser, key_check, spread
from echostill.curation.deidentification.review import (
    NEEDS_REVIEW,
    ReviewGate,
    prepare_pictures,
    reopen,
    write_review,
)
from echostill.curation.deidentification.text.ocr import require_ocr
from echostill.curation.ingestion.estimate import estimate
from echostill.curation.ingestion.findings import Findings
from echostill.curation.ingestion.growth.changes import (
    describe_changes,
    keep,
    listing,
    shard_name,
)
from echostill.curation.ingestion.growth.growing import Growing, GrowthSettings, cut_shards, grow
from echostill.curation.ingestion.keys import all_under_key, keep_key, pool_pseudonymiser
from echostill.curation.ingestion.listing import Listing, list_files
from echostill.curation.ingestion.losses import describe_quarantine
from echostill.curation.ingestion.manifests.files import Sources
from echostill.curation.ingestion.patients.devices import settle_devices
from echostill.curation.ingestion.repeats import settle_repeated_ids
from echostill.curation.ingestion.settings import IngestSettings, read_key
from echostill.curation.ingestion.summary import (
    Summary,
    in_sample,
    keep_summary,
    kept_summary,
    say,
)
from echostill.curation.ingestion.worker import MakeWorker, Payloads, pool_schema
from echostill.curation.withdrawal.refusal import describe_refused
from echostill.platform import stages
from echostill.platform.cluster.nodes import Nodes
from echostill.platform.cluster.plans import WorkerCount, WorkerPlan, check_workers, plan_workers
from echostill.platform.cluster.waiting import describe_plan, plan_on_cluster
from echostill.platform.config import StageConfig, execution
from echostill.platform.imaging.images import NoImageError
from echostill.platform.shards.log import Accounting
from echostill.platform.shards.records import Record
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.stage import Plan, Stage, StageResult, logged
from echostill.platform.tables.fingerprint import Claim, fingerprint
from echostill.platform.tables.store import Store, save_configuration
from echostill.platform.withdrawal.tombstones import read_tombstones


class IngestConfig(StageConfig, IngestSettings, GrowthSettings):
    """Ingest of image folders, file lists, manifests, archives, DICOM, videos and volumes."""

    workers: WorkerCount | None = execution(
        None,
        "Ingest workers, or [fewest, most] of a pool that follows the nodes; default as many as "
        "fit.",
    )
    max_error_rate: float = execution(
        0.05,
        "Largest share of quarantined rows. Frames held back for review do not count: see "
        "`deidentify.max_held_back_rate`.",
        ge=0,
        le=1,
    )

    _workers_fit = field_validator("workers")(check_workers)


@dataclass(frozen=True)
class IngestSetup:
    """The stage with its shards, before any work."""

    store: Store
    stage: ShardedStage
    shards: Payloads
    pseudonymiser: Pseudonymiser
    approved: dict[str, str]
    listing: Listing
    growing: Growing | None
    files: int  # over all shards

    def result(
        self, counts: Accounting, addition: str = "", *, already_done: bool = False
    ) -> StageResult:
        """Say what the pool holds now; ``addition`` ends the sentence."""
        done = "already done: " if already_done else ""
        summary, refused = kept_summary(self.store.sources()), describe_refused(self.store)
        return StageResult(
            "ingest",
            ("pool",),
            self.store.pool().root,
            {"files": self.files, **counts.counts, **summary.counts},
            f"{done}{self.files} files; {counts.describe()}{addition}{summary.describe()}{refused}",
            already_done,
        )

    def make_worker(self, config: IngestConfig) -> "MakeWorker":
        """Return the factory of the workers."""
        gate = _gate(config, self.store, self.approved)
        return MakeWorker(
            _settings(config, self.pseudonymiser),
            self.pseudonymiser,
            gate,
            _samples(config, self.shards),
        )

    def finish(self, stage: ShardedStage, records: dict[int, Record]) -> None:
        """Amend the shards when all are finished, and write the review table.

        Shards of earlier versions of the pool come first and keep what they say.
        """
        renamed = settle_repeated_ids(stage, records)
        if renamed:
            say(
                f"warning: {renamed} image(s) have the id (for DICOM, the SOP instance UID) of "
                "another image but other pixels: their ids are derived from their content."
            )
        settle_devices(stage, records)
        write_review(self.store, stage, records)
        summary = Summary.of(stage, records, self.listing)
        summary.warn()
        keep_summary(self.store.sources(), summary)
        summary.refuse_nothing(Accounting.of(records.values(), 0), self.store.root)

    def describe_losses(self, rows: int) -> str:
        """Describe what is in quarantine by kind, and what is held back for review."""
        records = self.stage.finished(len(self.shards))
        return describe_quarantine(self.stage, records, rows, self.store.root)


@logged(stages.INGEST)
def ingest(config: IngestConfig, *, overwrite: bool = False) -> StageResult:
    """Read every source into the pool.

    Returns:
        Counts of files, rows in, rows out and quarantined rows.
    """
    ready = prepare_ingest(config, overwrite)
    reopened = reopen(ready.stage, ready.shards, ready.approved)
    if ready.growing is not None:
        ready.growing.check_unfinished(ready.stage.finished(len(ready.shards)))
    if ready.stage.is_finished():
        return ready.result(ready.stage.accounting(), already_done=True)
    done = ready.stage.run(
        ready.shards,
        ready.make_worker(config),
        _connected_plan(config, len(ready.shards)),
        progress=config.progress,
        finish=ready.finish,
    )
    again = f"; {reopened} shard(s) read again for approved frames" if reopened else ""
    return ready.result(done, again + ready.describe_losses(done.rows_in))


@logged(stages.INGEST, "retry")
def retry_ingest(config: IngestConfig) -> StageResult:
    """Read the quarantined files again, after they were repaired or a decoder was installed.

    Rows that now succeed are inserted into the pool where they would have been. Frames that were
    held back and have been approved are added too.

    Returns:
        Counts as of :func:`ingest`; the sentence lists what was made from the previous pool.
    """
    store = Store(config.store)
    ready = prepare_ingest(config, overwrite=False, retry=True)
    before = store.open_pool().digest if ready.stage.is_finished() else None
    done = ready.stage.retry(
        ready.shards,
        ready.make_worker(config),
        _connected_plan(config, len(ready.shards)),
        progress=config.progress,
        finish=ready.finish,
    )
    sentence = done.describe(store.made_from(before) if before and done.changed else [])
    sentence += ready.describe_losses(done.accounting.rows_in)
    return done.result("ingest", "pool", store.pool().root, sentence)


@dataclass(frozen=True)
class _Request:
    """What an ingest was asked for: its files, under which key, and the pool they make."""

    shards: list[Sources]  # of a pool of its own
    pseudonymiser: Pseudonymiser
    contents: list[bytes]  # beginnings of files, that a key of this run is locked with
    shown: IngestConfig  # as it is kept beside the pool
    claim: Claim
    found: Listing
    listing: bytes  # as Parquet
    growing: Growing | None  # how the pool that there is goes on
    replaces: bool


def _request(
    config: IngestConfig, store: Store, overwrite: bool, *, retry: bool = False
) -> _Request:
    if config.deidentify.finder == "both":
        require_ocr()
    found = list_files(config)
    pseudonymiser, contents = pool_pseudonymiser(
        config, found.sources, None if overwrite else store.pool()
    )
    sources = all_under_key(found.sources, pseudonymiser.key)
    found = replace(found, sources=sources)
    cut = cut_shards(sources, config)
    shown = config.model_copy(
        update=pseudonymiser.values(config.model_dump(), ("source", "exclude", "root"))
    )
    data, digest = listing(sources, cut, pseudonymiser, tombstones=read_tombstones(store.storage))
    explained = {"inputs.files": lambda: describe_changes(store.sources(), data)}
    inputs = {"files": digest, "key check": key_check(pseudonymiser.key)}
    wanted = fingerprint(shown, inputs=inputs)
    claim = Claim(store.pool(), wanted, "ingest", "a pool", explained=explained)
    replaces, growing = overwrite and claim.check(overwrite), None
    if not replaces:
        own_key = read_key(config) is not None
        growing = grow(
            store, config, wanted, sources, data, pseudonymiser, retry=retry, own_key=own_key
        )
        replaces = growing is None and claim.check()
    shards = [sources[rows] for rows in cut]
    return _Request(shards, pseudonymiser, contents, shown, claim, found, data, growing, replaces)


def prepare_ingest(config: IngestConfig, overwrite: bool, *, retry: bool = False) -> IngestSetup:
    """List the files of an ingest, and begin its pool or go on with it; no file is read yet."""
    store = Store(config.store)
    request = _request(config, store, overwrite, retry=retry)
    growing = request.growing
    if growing is None:
        request.claim.take(overwrite)
        keep_key(store.pool(), request.pseudonymiser, request.contents)
    limit = config.deidentify.max_held_back_rate
    stage = ShardedStage(
        name="ingest",
        table=store.pool(),
        quarantine=store.quarantine("ingest"),
        schema=pool_schema(config),
        fingerprint=request.claim.wanted if growing is None else growing.fingerprint,
        max_error_rate=config.max_error_rate,
        events=store.events(),
        expected_class=NoImageError.__name__,
        held_back_class=NEEDS_REVIEW,
        max_held_back_rate=1.0 if limit is None else limit,
        history=() if growing is None else growing.history,
    )
    warnings = [f"warning: {one}" for one in request.found.warnings]
    for said in (*request.found.tables, *warnings, *(growing.notes() if growing else ())):
        say(f"{said}.")
    if growing is not None:
        growing.begin(store)
    elif not stage.is_finished():
        save_configuration(store.pool(), request.shown)
        keep(store.sources(), request.listing)
    shards = Payloads(request.shards if growing is None else growing.shards)
    pseudonymiser, approved = request.pseudonymiser, approved_pixels(store)
    files = len(request.found.sources) if growing is None else growing.files
    return IngestSetup(store, stage, shards, pseudonymiser, approved, request.found, growing, files)


def _connected_plan(config: IngestConfig, shards: int) -> WorkerPlan:
    return plan_on_cluster(config, partial(_plan, config, shards))


def _plan(config: IngestConfig, shards: int, nodes: Nodes) -> WorkerPlan:
    # Decoding runs on CPUs: the GPUs of the cluster are left to the models.
    return plan_workers(config.workers, shards, nodes)


def _settings(config: IngestConfig, pseudonymiser: Pseudonymiser) -> IngestSettings:
    """Return the settings for the workers, which then do not need to look up the key."""
    values = {name: getattr(config, name) for name in IngestSettings.model_fields}
    sources = "hashed" if pseudonymiser.hidden else "names"
    values["deidentify"] = config.deidentify.model_copy(update={"sources": sources})
    return IngestSettings(**values)


def _gate(config: IngestConfig, store: Store, approved: dict[str, str]) -> ReviewGate:
    settings, gone = config.deidentify, read_tombstones(store.storage)
    if not settings.review_pixels and not settings.contact_sheet:
        return ReviewGate(approved, tombstones=gone)
    pictures = prepare_pictures(store)
    say(
        f"warning: identifiable pixels are written to '{pictures.root}': protect this folder like "
        "the original files, and delete it after the review."
    )
    return ReviewGate(approved, pictures, settings.review_pixels, tombstones=gone)


def _samples(config: IngestConfig, shards: Payloads) -> dict[str, int]:
    """Distribute the frames of the contact sheet over the shards."""
    wanted = config.deidentify.contact_sheet
    listed = [shard for shard in shards if shard is not None] if wanted else []
    names = [shard_name(shard) for shard in spread(listed, wanted)]
    return {
        name: wanted // len(names) + (number < wanted % len(names))
        for number, name in enumerate(names)
    }


def plan_ingest(config: IngestConfig, *, overwrite: bool = False) -> Plan:
    """Describe what :func:`ingest` would do."""
    store = Store(config.store)
    request = _request(config, store, overwrite)
    shards, growing = request.shards, request.growing
    sources = request.found.sources
    out = Plan("ingest")
    out.add("sources", f"{len(sources)} files (a cine is one file and gives a row per frame)")
    for said in request.found.tables:
        out.add("columns", said)
    for said in growing.notes() if growing else ():
        out.add("pool", said)
    out.add("shards", f"{len(shards)} of up to {config.files_per_shard} files")
    out.add("workers", describe_plan(config, partial(_plan, config, len(shards))))
    findings = Findings()
    out.add("size", estimate(sources, config, findings).describe())
    for label, said in in_sample(request.found, sources, findings, request.pseudonymiser):
        out.add(label, said)
    done = 0 if request.replaces else len(store.pool().list("done"))
    shard_count = len(shards if growing is None else growing.shards)
    names = "as keyed hashes" if config.hides_names else "unchanged"
    pixels = "only the sector, uncertain frames held back"
    if config.deidentify.pixels == "off":
        pixels = "unchanged (deidentify.pixels is off)"
    out.add("identifiers", f"pixels: {pixels}; file names and groups: {names}")
    out.add("already done", f"{done} of {shard_count} shards")
    out.add("result", store.pool().root)
    return out


STAGE = Stage(stages.INGEST, IngestConfig, ingest, plan_ingest, retry_ingest)
