"""What an ingest could not read, by name: the answer to `echostill quarantine`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from echostill.curation.deidentification.review import NEEDS_REVIEW
from echostill.curation.ingestion.keys import reveal
from echostill.curation.ingestion.stage import IngestConfig
from echostill.platform.config import load
from echostill.platform.imaging.images import NoImageError
from echostill.platform.tables.quarantine import quarantine_rows
from echostill.platform.tables.store import Store

_OTHER = (NEEDS_REVIEW, NoImageError.__name__)  # not damaged


def damaged_files(
    store: str, config: str | None = None, *, everything: bool = False
) -> list[dict[str, Any]]:
    """Return the rows of a store's quarantine, with the names of their files.

    Args:
        store: Folder or URI.
        config: Configuration of the ingest, with which hashed names are looked up.
        everything: Whether frames that wait for review, and files that were not meant to be
            pictures, are listed too.

    Raises:
        UsageError: There is no such store, or the configuration's sources or key are missing.
    """
    opened = Store(store)
    rows = quarantine_rows(opened)
    rows = [row for row in rows if everything or row["error_class"] not in _OTHER]
    if config is not None and rows:
        settings = load(IngestConfig, "ingest", config)
        names = reveal(settings, opened.pool(), [row["source"] for row in rows])
        rows = [{**row, "source": names.get(row["source"], row["source"])} for row in rows]
    return rows


def describe(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say them in words, a line each and the numbers by class."""
    lines = [
        f"{row['source'] or row['id']}  {row['error_class']}: {row['message']}" for row in rows
    ]
    counts = Counter(row["error_class"] for row in rows)
    said = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    return "\n".join([*lines, f"{len(rows)} listed" + (f": {said}" if said else "")])
