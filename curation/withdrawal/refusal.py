"""What was withdrawn does not come in again: rows of an ingest that have a tombstone."""

from collections.abc import Mapping
from typing import Any

from echostill.curation.deidentification.review import NEEDS_REVIEW, ReviewGate
from echostill.curation.deidentification.verdict import split_context
from echostill.platform.shards.outcome import Outcome
from echostill.platform.shards.records import read_records
from echostill.platform.tables.store import Store
from echostill.platform.withdrawal.state import TOMBSTONES
from echostill.platform.withdrawal.tombstones import NOTE

_COLUMNS = ("image_id", "group_id", "content_hash")


def refuse_withdrawn(outcome: Outcome, gate: ReviewGate, key: bytes) -> Outcome:
    """Leave out the rows of withdrawn images, in the pool and in quarantine, and their pictures.

    Args:
        outcome: What became of a shard of files.
        gate: With the tombstones; forgets the frames.
        key: Key of the identifiers.

    Returns:
        The outcome without them; a note has the tombstone of each.
    """
    tombstones = gate.tombstones
    if not tombstones:
        return outcome
    rows = outcome.rows.select(list(_COLUMNS)).to_pylist()
    held = [_known(row) for row in outcome.quarantined.to_pylist()]
    marks = [[tombstones.refusal(row, key) for row in found] for found in (rows, held)]
    for row, mark in zip([*rows, *held], [*marks[0], *marks[1]], strict=True):
        if mark:
            gate.forget(row.get("image_id") or row["id"])
    refused = sorted({mark for found in marks for mark in found if mark})
    if not refused:
        return outcome
    kept = outcome.without(*([bool(mark) for mark in found] for found in marks))
    return kept.noted(NOTE, refused)


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a row in quarantine: of frames held back also the group."""
    group = split_context(row["message"])[1].group if row["error_class"] == NEEDS_REVIEW else ""
    return {"image_id": row["id"], "id": row["id"], "group_id": group}


def describe_refused(store: Store) -> str:
    """Say how many withdrawn images the pool's files would have brought; empty of none."""
    if not store.storage.exists(TOMBSTONES):
        return ""
    marks = {
        mark
        for record in read_records(store.pool())
        for mark in record.get("notes", {}).get(NOTE, ())
    }
    return f"; {len(marks)} withdrawn image(s) refused" if marks else ""
