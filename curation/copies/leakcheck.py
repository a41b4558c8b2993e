"""Search for benchmark images in the pool: exact, near and semantic overlap.

The result of a test on images that the model saw in training is meaningless. Every pool image that
is a copy of a benchmark image therefore gets a row in the store's table ``leaks``. A selection
leaves it out and names the benchmark image in the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from echostill.curation.copies.benchmarks import COLUMNS, Benchmark, find_benchmarks
from echostill.curation.copies.groups import EXACT, KINDS, NEAR, SEMANTIC
from echostill.curation.copies.near import NearSettings, near_links, pool_thumbnails
from echostill.curation.copies.semantic import mean_feature, nearest_features
from echostill.curation.copies.stage import HASH_COLUMNS, describe_copy, require_columns
from echostill.curation.ingestion.perceptual import as_hashes, as_thumbnails
from echostill.curation.scoring.teacher_features import teacher_features, teacher_of_scores
from echostill.curation.selection.features import TableFeatures
from echostill.platform.errors import UsageError
from echostill.platform.imaging.images import decode_staged
from echostill.platform.models import Encoder
from echostill.platform.preflight.checks import check_writable
from echostill.platform.tables.fingerprint import code_version
from echostill.platform.tables.schemas import LEAKS_SCHEMA
from echostill.platform.tables.storage import sha256
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    encode_parquet,
    part_record,
    write_manifest,
)
from echostill.platform.tables.versions import version_with


class LeakSettings(NearSettings):
    """When a pool image counts as a copy of a benchmark's image."""

    semantic_epsilon: float | None = Field(
        0.002,
        gt=0,
        le=1,
        description="Largest 1 - cosine of the centred teacher features; null compares none.",
    )


@dataclass(frozen=True)
class Overlap:
    """The overlap of a pool with a benchmark.

    Attributes:
        images: images of the benchmark.
        leaks: rows of the pool that are copies of one of them (LEAKS_SCHEMA), sorted by id.
    """

    benchmark: str
    images: int
    leaks: pa.Table

    def count(self, kind: str) -> int:
        """Return how many of the leaks are of a kind."""
        return int(self.leaks["kind"].to_pylist().count(kind))


@dataclass(frozen=True)
class LeakReport:
    """The overlap of a pool with benchmarks."""

    store: str
    pool_images: int
    overlaps: list[Overlap]
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether no image of the pool is in a benchmark."""
        return not any(overlap.leaks.num_rows for overlap in self.overlaps)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "store": self.store,
            "pool_images": self.pool_images,
            "clean": self.clean,
            "notes": self.notes,
            "benchmarks": [
                {
                    "benchmark": overlap.benchmark,
                    "images": overlap.images,
                    **{kind: overlap.count(kind) for kind in KINDS},
                    "leaks": overlap.leaks.select(["image_id", "benchmark_image", "kind"])
                    .append_column("distance", overlap.leaks["distance"].cast(pa.float64()))
                    .to_pylist(),
                }
                for overlap in self.overlaps
            ],
        }

    def describe(self) -> str:
        """Format the report as a table."""
        width = max(9, *(len(overlap.benchmark) for overlap in self.overlaps))
        lines = [f"{'benchmark':<{width}}{'images':>9}" + "".join(f"{kind:>10}" for kind in KINDS)]
        for overlap in self.overlaps:
            counts = "".join(f"{overlap.count(kind):>10}" for kind in KINDS)
            lines.append(f"{overlap.benchmark:<{width}}{overlap.images:>9}{counts}")
        lines += [f"note: {note}" for note in self.notes]
        leaked = len({i for o in self.overlaps for i in o.leaks["image_id"].to_pylist()})
        verdict = (
            f"clean: none of the pool's {self.pool_images} images is in a benchmark"
            if self.clean
            else f"{leaked} of the pool's {self.pool_images} images are in a benchmark; a "
            f"selection leaves them out (table '{Store(self.store).leaks().root}')"
        )
        return "\n".join([*lines, verdict])


def check_leaks(
    store: str, benchmarks: Sequence[str], settings: LeakSettings | None = None
) -> LeakReport:
    """Search for benchmark images in a store's pool, and record the findings.

    The table ``leaks`` keeps the findings of earlier checks of the same pool in other benchmarks.

    Args:
        store: The store with the pool.
        benchmarks: Manifests (CSV, Parquet, text), folders, or other stores.
        settings: What counts as a copy.

    Raises:
        UsageError: The pool or a benchmark does not exist, or a benchmark's image is unreadable.
    """
    opened = Store(store)
    pool = opened.open_pool()
    check_writable(opened, "leaks")
    require_columns(pool, HASH_COLUMNS)
    found = find_benchmarks(benchmarks, pool)
    _check_all_named(opened, pool, [benchmark.name for benchmark in found])
    settings = settings or LeakSettings()
    side = _PoolSide(opened, pool, settings)
    overlaps = [side.overlap(benchmark) for benchmark in found]
    _record(opened, pool, overlaps)
    return LeakReport(store, pool.rows, overlaps, side.notes)


class _PoolSide:
    """The pool, read once and compared with each benchmark."""

    def __init__(self, store: Store, pool: Table, settings: LeakSettings) -> None:
        self.pool, self.settings = pool, settings
        self.notes: list[str] = []
        rows = pool.read(["image_id", "content_hash", "perceptual_hash"])
        self.ids = rows["image_id"].combine_chunks()
        self.digests = rows["content_hash"].combine_chunks()
        self.hashes = as_hashes(rows["perceptual_hash"])
        self.scores: Table | None = None
        self.teacher: Encoder | None = None
        if settings.semantic_epsilon is not None:
            self._open_features(store)

    def _open_features(self, store: Store) -> None:
        if not store.scores().exists(MANIFEST):
            self.notes.append("features were not compared: the store has no scores yet")
            return
        scores = store.open_scores()
        try:
            self.teacher = teacher_of_scores(store, scores)
        except UsageError as error:
            self.notes.append(f"features were not compared: {error}")
            return
        self.scores = scores

    @cached_property
    def _mean(self) -> np.ndarray:
        assert self.scores is not None
        return mean_feature(TableFeatures(self.scores))

    def overlap(self, benchmark: Benchmark) -> Overlap:
        """Compare the pool with one benchmark; each pool image gets its most certain match."""
        columns, features = self._read(benchmark)
        matches = [self._exact(columns), self._near(columns)]
        if self.scores is not None and features is not None:
            matches.append(self._semantic(self.scores, features))
        row, other, kind, distance = (np.concatenate(parts) for parts in zip(*matches, strict=True))
        order = np.lexsort((other, distance, kind, row))
        first = order[np.unique(row[order], return_index=True)[1]]
        files = columns["source"].take(pa.array(other[first])).to_pylist()
        reasons = [
            f"{describe_copy(k, d)} of '{file}' in benchmark '{benchmark.name}'"
            for k, d, file in zip(
                kind[first].tolist(), distance[first].tolist(), files, strict=True
            )
        ]
        leaks = pa.table(
            {
                "image_id": self.ids.take(pa.array(row[first])),
                "benchmark": pa.array([benchmark.name] * len(first), pa.string()),
                "benchmark_image": pa.array(files, pa.string()),
                "kind": pa.array(KINDS).take(pa.array(kind[first])),
                "distance": pa.array(distance[first], pa.float32()),
                "reason": pa.array(reasons, pa.string()),
            },
            schema=LEAKS_SCHEMA,
        )
        return Overlap(benchmark.name, len(columns), leaks.sort_by("image_id"))

    def _read(self, benchmark: Benchmark) -> tuple[pa.Table, np.ndarray | None]:
        kept, features = [], []
        for part in benchmark.parts():
            if self.teacher is not None:
                images = [decode_staged(data) for data in part["image"].to_pylist()]
                features.append(teacher_features(self.teacher, images))
            kept.append(part.select([column for column in COLUMNS if column != "image"]))
        return pa.concat_tables(kept), np.concatenate(features) if features else None

    def _exact(self, columns: pa.Table) -> tuple[np.ndarray, ...]:
        digests = columns["content_hash"].combine_chunks()
        place = pc.index_in(self.digests, value_set=digests)
        row = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        return _matches(row, place.take(pa.array(row)).to_numpy(), EXACT, np.zeros(len(row)))

    def _near(self, columns: pa.Table) -> tuple[np.ndarray, ...]:
        count = len(self.ids)
        hashes = np.concatenate([self.hashes, as_hashes(columns["perceptual_hash"])])
        theirs = as_thumbnails(columns["thumbnail"])

        def thumbnails(rows: np.ndarray) -> np.ndarray:
            own, other = rows[rows < count], rows[rows >= count] - count
            return np.concatenate([pool_thumbnails(self.pool, own), theirs[other]])

        links = near_links(hashes, np.arange(len(hashes)) >= count, thumbnails, self.settings)
        return _matches(links.first, links.second - count, NEAR, links.distance)

    def _semantic(self, scores: Table, theirs: np.ndarray) -> tuple[np.ndarray, ...]:
        assert self.settings.semantic_epsilon is not None
        row, other, gap = nearest_features(
            TableFeatures(scores), self._mean, theirs, self.settings.semantic_epsilon
        )
        ids = scores.read(["image_id"])["image_id"].combine_chunks()
        place = pc.index_in(ids, value_set=self.ids)
        known = place.take(pa.array(row))
        valid = known.is_valid().to_numpy(zero_copy_only=False)
        return _matches(known.drop_null().to_numpy(), other[valid], SEMANTIC, gap[valid])


def _matches(
    row: np.ndarray, other: np.ndarray, kind: int, distance: np.ndarray
) -> tuple[np.ndarray, ...]:
    kinds = np.full(len(row), kind, dtype=np.int64)
    return row.astype(np.int64), other.astype(np.int64), kinds, distance.astype(np.float32)


def _check_all_named(store: Store, pool: Table, names: Sequence[str]) -> None:
    """Check that no benchmark is forgotten that an earlier version of the pool was compared with.

    Raises:
        UsageError: One is: its leaks would be lost, and new images not compared with it.
    """
    storage = store.leaks()
    if not storage.exists(MANIFEST):
        return
    old = Table.open(storage, "leakcheck").manifest
    checked = old["fingerprint"]["inputs"]["pool"]
    version = version_with(pool, checked)
    left = sorted(set(old["benchmarks"]) - set(names))
    if checked != pool.digest and version is not None and left:
        raise UsageError(
            f"the pool has grown since its images were compared with {', '.join(left)}: name these "
            f"too, or delete '{storage.root}' to forget what was found in them."
        )


def _record(store: Store, pool: Table, overlaps: Sequence[Overlap]) -> None:
    """Write the table: the new findings, and those of other benchmarks in the same pool."""
    storage = store.leaks()
    checked = {overlap.benchmark: overlap.images for overlap in overlaps}
    tables = [overlap.leaks for overlap in overlaps]
    if storage.exists(MANIFEST):
        old = Table.open(storage, "leakcheck")
        if old.manifest["fingerprint"]["inputs"]["pool"] == pool.digest:
            others = {
                name: count
                for name, count in old.manifest["benchmarks"].items()
                if name not in checked
            }
            rows = old.read()
            tables.append(
                rows.filter(pc.is_in(rows["benchmark"], value_set=pa.array([*others], pa.string())))
            )
            checked |= others
    table = pa.concat_tables(tables)
    table = table.sort_by([("image_id", "ascending"), ("benchmark", "ascending")])
    data = encode_parquet(table)
    # A new name: the old part stays intact until the manifest names the new one.
    name = f"part-{sha256(data)[:16]}.parquet"
    storage.write(name, data)
    inputs = {"pool": pool.digest}
    write_manifest(
        storage,
        stage="leakcheck",
        schema=table.schema,
        parts=[part_record(name, table.num_rows, data)],
        fingerprint={"code": code_version(), "inputs": inputs, "digest": pool.digest},
        extra={"benchmarks": checked},
    )
    for old_name in storage.list():
        if old_name.endswith(".parquet") and old_name != name:
            storage.delete(old_name)
