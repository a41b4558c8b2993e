"""The images of a benchmark, read as the pool was, for a comparison of the two."""

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from echostill.curation.deidentification.review import ReviewGate
from echostill.curation.ingestion.listing import list_sources
from echostill.curation.ingestion.settings import IngestSettings
from echostill.curation.ingestion.sources import Failure, read_source
from echostill.platform.errors import UsageError
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table

COLUMNS = ("source", "content_hash", "perceptual_hash", "thumbnail", "image")
IMAGES_AT_ONCE = 256
# These keys of the ingest settings determine which files are read; all others determine how.
_LISTING_KEYS = frozenset(
    {"source", "exclude", "recursive", "root", "group_pattern", "organ", "device", "key_file"}
)


@dataclass(frozen=True)
class Benchmark:
    """A set of images that a pool must not contain: a manifest, a folder, or another store."""

    name: str
    location: str
    settings: IngestSettings  # as for the pool, so that equal images get equal pixels

    def parts(self) -> Iterator[pa.Table]:
        """Read the images, a few at a time, as rows with the columns ``COLUMNS``.

        Raises:
            UsageError: There is no such benchmark, or an image cannot be read, so that it cannot be
                known to be clean.
        """
        if _is_store(self.location):
            yield from Store(self.location).open_pool().parts(COLUMNS)
            return
        listing = IngestSettings(source=self.location)
        # De-identified as the pool was, so that both can be compared. Frames that ingest would hold
        # back are compared too, because an approval adds them to a pool as cleaned.
        gate = ReviewGate(lenient=True)
        rows: list[dict[str, Any]] = []
        for source in list_sources(listing):
            for row in read_source(source, self.settings, gate=gate):
                if isinstance(row, Failure):
                    raise UsageError(f"benchmark '{self.name}': '{row.source}': {row.message}.")
                rows.append({column: row[column] for column in COLUMNS})
            if len(rows) >= IMAGES_AT_ONCE:
                yield _table(rows)
                rows = []
        yield _table(rows)


def find_benchmarks(locations: Sequence[str], pool: Table) -> list[Benchmark]:
    """Name the benchmarks by the last two parts of their paths, or more if needed to be unique.

    Args:
        locations: Manifests (.csv, .parquet, .txt), folders or stores.
        pool: The pool they are compared with.

    Raises:
        UsageError: No benchmark is given, or the same one twice.
    """
    if not locations:
        raise UsageError("no benchmark given: name a manifest, a folder or a store.")
    trimmed = [location.rstrip("/") for location in locations]
    if len(set(trimmed)) < len(trimmed):
        raise UsageError("a benchmark is given twice: name each one once.")
    settings = _settings(pool)
    names = [_short_name(location, trimmed) for location in trimmed]
    return [
        Benchmark(name, location, settings) for name, location in zip(names, trimmed, strict=True)
    ]


def _settings(pool: Table) -> IngestSettings:
    saved: dict[str, Any] = {}
    if pool.storage.exists("configuration.json"):
        saved = json.loads(pool.storage.read("configuration.json"))
    known = set(IngestSettings.model_fields) - _LISTING_KEYS
    values = {key: value for key, value in saved.items() if key in known}
    return IngestSettings.model_validate_json(json.dumps(values))


def _short_name(location: str, others: Sequence[str]) -> str:
    parts = location.split("/")
    for count in range(min(2, len(parts)), len(parts) + 1):
        name = "/".join(parts[-count:])
        if sum(other == name or other.endswith(f"/{name}") for other in others) == 1:
            return posixpath.splitext(name)[0]
    return location


def _is_store(location: str) -> bool:
    return Store(location).pool().exists(MANIFEST)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    types = {"source": pa.string(), "content_hash": pa.string(), "image": pa.large_binary()}
    types |= {"perceptual_hash": pa.binary(64), "thumbnail": pa.binary(512)}
    schema = pa.schema([(column, types[column]) for column in COLUMNS])
    return pa.Table.from_pylist(rows, schema=schema)
