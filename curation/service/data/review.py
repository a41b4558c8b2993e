"""Frames that were held back for review, as the service shows them; read again on a change."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echostill.curation.deidentification.decisions import (
    decisions_storage,
    latest,
    review_storage,
    state_of,
)
from echostill.curation.deidentification.review import PICTURES
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table

FACETS = ("state", "reason", "organ", "device", "group_id")
SORTS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "group_id": lambda row: row["group_id"],
    "image_id": lambda row: row["image_id"],
    "score": lambda row: row["score"],
    "-score": lambda row: -row["score"],
    "-redacted": lambda row: -row["redacted"],
}


@dataclass(frozen=True)
class ReviewFilter:
    """Which frames; a filter left out lets all through.

    Attributes:
        choices: by facet, the values that pass.
        least, most: bounds of the text score, inclusive.
    """

    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    least: float = 0.0
    most: float = 1.0

    def passes(self, row: Mapping[str, Any], *, but: str = "") -> bool:
        """Return whether a row passes all filters but that of one facet."""
        return self.least <= row["score"] <= self.most and all(
            row[name] in values for name, values in self.choices.items() if values and name != but
        )


class ReviewTable:
    """The rows of the review table with the decisions on them, and their pictures."""

    def __init__(self, store: Store) -> None:
        self._storage = review_storage(store)
        self._store = store
        self._lock = threading.Lock()
        self._seen: Any = None
        self._rows: dict[str, dict[str, Any]] = {}

    def rows(self) -> Mapping[str, dict[str, Any]]:
        """Return the frames held back by id, in the table's order; none where nothing was."""
        with self._lock:
            seen = self._signature()
            if seen != self._seen:
                self._rows, self._seen = self._read() if seen else {}, seen
            return self._rows

    def picture(self, image_id: str) -> bytes | None:
        """Return the frame before and after cleaning side by side as PNG, if it was written."""
        pictures = self._storage.at(PICTURES)
        name = f"{image_id}.png"
        return pictures.read(name) if pictures.exists(name) else None

    def _signature(self) -> Any:
        """What changes with the table or the decisions; None where there is no table."""
        if not self._storage.exists(MANIFEST):
            return None
        return self._storage.read(MANIFEST), tuple(decisions_storage(self._store).list())

    def _read(self) -> dict[str, dict[str, Any]]:
        rows: list[dict[str, Any]] = Table.open(self._storage, "ingest").read().to_pylist()
        decided = latest(self._store)
        written = set(self._storage.at(PICTURES).list())
        return {
            row["image_id"]: {
                **{key: _plain(value) for key, value in row.items()},
                **state_of(row, decided),
                "picture": f"{row['image_id']}.png" in written,
            }
            for row in rows
        }


def _plain(value: Any) -> Any:
    """A value for JSON, which knows no NaN; older tables lack a few columns' values."""
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    return "" if value is None else value
