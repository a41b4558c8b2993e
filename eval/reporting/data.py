"""What a report is made from: the store's tables, runs and evaluation, read once."""

import base64
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from echostill.eval.names import FORMAT, RESULT
from echostill.eval.reporting.copies import CopyCounts, count_copies
from echostill.platform.errors import UsageError, nearest
from echostill.platform.imaging.images import decode_image, resize_longest
from echostill.platform.tables.ids import rows_of_ids
from echostill.platform.tables.schemas import QUALITY_ISSUES, QUARANTINE_SCHEMA
from echostill.platform.tables.storage import Storage, sha256
from echostill.platform.tables.store import Store, read_configuration, read_manifest
from echostill.platform.tables.table import MANIFEST, Table
from echostill.platform.training.run import METRICS, read_history

PICTURE = "reconstructions.png"
NOT_STATED = "not stated"
POOL_COLUMNS = [
    "image_id",
    "group_id",
    "source",
    "organ",
    "device",
    "original_width",
    "original_height",
]
# An absolute path: what is left of it in a report is the last part, which names the file.
_ABSOLUTE = re.compile(r"(?<![\w.:/~])(?:[A-Za-z]:\\|~/|/)(?:[^\s'\"<>:;,]+[/\\])+")


@dataclass(frozen=True)
class StageCounts:
    """Row counts of a stage: rows in = rows out + quarantined."""

    stage: str
    rows_in: int
    rows_out: int
    quarantined: int

    @property
    def adds_up(self) -> bool:
        """Whether no row was lost or doubled."""
        return self.rows_in == self.rows_out + self.quarantined


@dataclass(frozen=True)
class RunRecord:
    """A training run as it was logged."""

    name: str
    stage: str
    configuration: dict[str, Any]
    history: list[dict[str, float]]
    digest: str
    same_coreset: bool  # whether it was trained on the coreset of this report
    picture: bytes | None = None

    @property
    def student(self) -> str:
        """Name of the student: the run's without its seed."""
        return self.name.rpartition("-")[0] if self.stage == "distill" else self.name

    @property
    def objective(self) -> dict[str, Any]:
        """The objective's settings; empty for a run that has none."""
        students = self.configuration.get("students") or [{}]
        objective: dict[str, Any] = students[0].get("objective", {})
        return objective

    @property
    def distils(self) -> bool:
        """Whether the run follows a teacher."""
        return bool(self.objective.get("distil", False))

    @property
    def weight_spread(self) -> float | None:
        """Mean over the run of the consistency weight's spread over a batch."""
        spreads = [row["weight_std"] for row in self.history if "weight_std" in row]
        return float(np.mean(spreads)) if spreads else None


@dataclass(frozen=True)
class Material:
    """Everything a report shows.

    Attributes:
        images: the pool without its pixels, columns ``POOL_COLUMNS`` and the quality flags
            that it has.
        coreset: the coreset table, a row per scored image, sorted by id.
        organ: (N,) organ of each coreset row.
        source: (N,) source of each coreset row.
        gradient: (N, checkpoints) float32, gradient norms of each coreset row; NaN where unknown.
        configurations: resolved configuration of each stage that kept one.
        digests: digest of each input, by name.
        passed_over: files that ingest did not read or that are no pictures, by kind.
        contributors: stores that the pool was merged from, rows of the table of that name.
    """

    name: str
    coreset_name: str
    pool: Table
    images: pa.Table
    coreset: pa.Table
    organ: np.ndarray
    source: np.ndarray
    gradient: np.ndarray
    accounting: list[StageCounts]
    quarantine: pa.Table
    runs: list[RunRecord]
    proxy: RunRecord | None
    evaluation: dict[str, Any]
    configurations: dict[str, dict[str, Any]]
    digests: dict[str, str]
    passed_over: dict[str, int] = field(default_factory=dict)
    copies: CopyCounts = field(default_factory=CopyCounts)
    contributors: list[dict[str, Any]] = field(default_factory=list)


def gather(store: Store, name: str, coreset_name: str, run_names: Sequence[str]) -> Material:
    """Read all that a report is made from.

    Raises:
        UsageError: A table, the evaluation or a named run is missing; says what to do.
    """
    evaluation, evaluation_digest = read_evaluation(store, name)
    pool, scores = store.open_pool(), store.open_scores()
    coreset = store.open_coreset(coreset_name)
    images, rows = pool.read([*POOL_COLUMNS, *_flag_columns(pool)]), coreset.read()
    runs = [_read_run(store, run, coreset.digest) for run in find_runs(store, run_names)]
    proxy = None
    if read_manifest(store.run("proxy")) is not None:
        proxy = _read_run(store, "proxy", coreset.digest)
    place = pa.array(_coreset_rows(rows["image_id"], images["image_id"], "the pool"))
    configurations = {
        "ingest": read_configuration(store.pool()),
        "score": read_configuration(store.scores()),
        "duplicates": read_configuration(store.duplicates()),
        "select": read_configuration(coreset.storage),
        "evaluate": read_configuration(store.report(name)),
    } | {f"distill, {run.name}": run.configuration for run in runs}
    digests = {
        "pool": pool.digest,
        "scores": scores.digest,
        f"coreset {coreset_name}": coreset.digest,
        "evaluation": evaluation_digest,
    } | {f"run {run.name}": run.digest for run in ([proxy] if proxy else []) + runs}
    return Material(
        name=name,
        coreset_name=coreset_name,
        pool=pool,
        images=images,
        coreset=rows,
        organ=_stated(images["organ"]).take(place).to_numpy(zero_copy_only=False),
        source=images["source"].combine_chunks().take(place).to_numpy(zero_copy_only=False),
        gradient=_gradients(scores, rows["image_id"]),
        accounting=[_count(pool), _count(scores)],
        quarantine=_quarantine(store),
        passed_over=_passed_over(store.sources()),
        runs=runs,
        proxy=proxy,
        evaluation=evaluation,
        configurations={key: value for key, value in configurations.items() if value},
        digests=digests,
        copies=count_copies(store, scores, rows),
        contributors=store.read_contributors(),
    )


def _flag_columns(pool: Table) -> list[str]:
    """The pool's quality flags; a pool of an earlier version has none."""
    present = {name for name, _ in pool.manifest["schema"]}
    return [issue for issue in QUALITY_ISSUES if issue in present]


def read_evaluation(store: Store, name: str) -> tuple[dict[str, Any], str]:
    """Return an evaluation and its digest.

    Raises:
        UsageError: There is none of that name, which names the nearest; or in another form.
    """
    storage = store.report(name)
    if not storage.exists(RESULT):
        entries = store.storage.list("reports", recursive=True)
        known = sorted({e.split("/")[1] for e in entries if e.endswith(f"/{RESULT}")})
        there = f"{nearest(name, known)} There are: {', '.join(known)}." if known else ""
        raise UsageError(
            f"no evaluation '{name}' in '{store.root}'.{there} Run echostill evaluate first."
        )
    data = storage.read(RESULT)
    evaluation: dict[str, Any] = json.loads(data)
    if evaluation.get("format") != FORMAT:
        raise UsageError(
            f"evaluation '{name}' in '{store.root}' was made by another release (form "
            f"{evaluation.get('format', 1)}, this one reads {FORMAT}): run `echostill evaluate "
            "--overwrite` with its configuration."
        )
    return evaluation, sha256(data)


def find_runs(store: Store, wanted: Sequence[str]) -> list[str]:
    """Return the named runs, or every finished run that trained a student.

    Raises:
        UsageError: A named run is not finished or does not exist.
    """
    known = [
        name for name in store.run_names() if _manifest(store.run(name)).get("stage") == "distill"
    ]
    for name in wanted:
        if name not in known:
            there = f" There are: {', '.join(known)}." if known else ""
            raise UsageError(
                f"no finished student run '{name}' in '{store.root}'.{nearest(name, known)}{there} "
                "Run echostill distill first."
            )
    return list(wanted) or known


def thumbnails(pool: Table, ids: Iterable[str], side: int) -> dict[str, str]:
    """Return images as JPEG data URIs of at most ``side`` pixels, by image id.

    Only the parts of the pool that hold one of them are decoded.
    """
    wanted = pa.array(sorted(set(ids)), pa.string())
    found: dict[str, str] = {}
    for name in pool.part_names:
        if len(found) == len(wanted):
            break
        mask = pc.is_in(pool.read_part(name, ["image_id"])["image_id"], value_set=wanted)
        if not pc.any(mask).as_py():
            continue
        for row in pool.read_part(name, ["image_id", "image"]).filter(mask).to_pylist():
            found[row["image_id"]] = data_uri(resize_longest(decode_image(row["image"]), side))
    return found


def data_uri(pixels: np.ndarray, quality: int = 80) -> str:
    """Encode uint8 pixels (H, W) or (H, W, 3) as a JPEG data URI."""
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


def without_paths(value: Any) -> Any:
    """Shorten absolute paths in texts to the file's name: a report must not name its machine."""
    if isinstance(value, str):
        return _ABSOLUTE.sub("", value)
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(item) for item in value]
    return value


def counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """Count a column's values, most frequent first, ties by name; empty is 'not stated'."""
    table = pc.value_counts(_stated(column))
    pairs = [(item["values"], int(item["counts"])) for item in table.to_pylist()]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def _stated(column: pa.ChunkedArray) -> pa.Array:
    filled = pc.fill_null(column, "").combine_chunks()
    return pc.if_else(pc.equal(filled, ""), NOT_STATED, filled)


def _coreset_rows(ids: pa.ChunkedArray, among: pa.ChunkedArray, where: str) -> np.ndarray:
    return rows_of_ids(
        ids,
        among,
        what="images of the coreset",
        where=where,
        advice="It was selected from another one. Run echostill score and echostill select again.",
    )


def _gradients(scores: Table, ids: pa.ChunkedArray) -> np.ndarray:
    table = scores.read(["image_id", "gradient"])
    place = _coreset_rows(ids, table["image_id"], "the scores")
    lists = table["gradient"].combine_chunks()
    values = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    gradients: np.ndarray = values.reshape(len(table), -1)[place]
    return gradients


def _read_run(store: Store, name: str, coreset_digest: str) -> RunRecord:
    storage = store.run(name)
    manifest = _manifest(storage)
    fingerprint = manifest.get("fingerprint", {})
    return RunRecord(
        name=name,
        stage=manifest.get("stage", ""),
        configuration=read_configuration(storage),
        history=read_history(storage) if storage.exists(METRICS) else [],
        digest=str(fingerprint.get("digest", "")),
        same_coreset=fingerprint.get("inputs", {}).get("coreset", "") in ("", coreset_digest),
        picture=storage.read(PICTURE) if storage.exists(PICTURE) else None,
    )


def _manifest(storage: Storage) -> dict[str, Any]:
    return read_manifest(storage) or {}


def _count(table: Table) -> StageCounts:
    manifest = table.manifest
    quarantined = int(manifest.get("quarantined", 0))
    rows_in = int(manifest.get("rows_in", table.rows + quarantined))
    return StageCounts(str(manifest["stage"]), rows_in, table.rows, quarantined)


def _passed_over(sources: Storage) -> dict[str, int]:
    """Read what ingest kept of it beside its list of files; nothing of an earlier release."""
    if not sources.exists("summary.json"):
        return {}
    found: dict[str, int] = json.loads(sources.read("summary.json"))["passed_over"]
    return {kind: number for kind, number in found.items() if number}


def _quarantine(store: Store) -> pa.Table:
    parts = [QUARANTINE_SCHEMA.empty_table()]
    for stage in ("ingest", "score"):
        if store.quarantine(stage).exists(MANIFEST):
            parts += Table.open(store.quarantine(stage), stage).parts()
    return pa.concat_tables(parts)
