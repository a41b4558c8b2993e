"""Frames that were held back for review: listed, shown and decided on."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from echostill.curation.deidentification.decisions import Decision, record
from echostill.curation.service.data.review import FACETS, SORTS, ReviewFilter, ReviewTable
from echostill.curation.service.problems import Problem, bad_request, conflict, unknown
from echostill.platform.errors import nearest
from echostill.platform.tables.store import Store

VALUES_SHOWN = 200  # of a facet: the most frequent ones
_SHOWN = (
    "image_id", "source", "reason", "score", "boxes", "confidence", "method", "redacted", "organ",
    "device", "group_id", "picture", "state", "decided_by", "decided_reason",
)  # fmt: skip


def review_list(
    review: ReviewTable, wanted: ReviewFilter, sort: str, offset: int, limit: int
) -> dict[str, Any]:
    """List frames held back, and how many there are by every value of each facet.

    A facet's own filter does not change its counts: they say what another choice would show.
    """
    if sort not in SORTS:
        raise bad_request(f"cannot sort by '{sort}': expected {', '.join(SORTS)}.")
    rows = review.rows().values()
    found = sorted(filter(wanted.passes, rows), key=lambda row: (SORTS[sort](row), row["image_id"]))
    end = offset + limit
    return {
        "items": [_item(row) for row in found[offset:end]],
        "total": len(found),
        "next": end if end < len(found) else None,
        "held_back": len(rows),
        "facets": {name: _counts(rows, wanted, name) for name in FACETS},
    }


def review_picture(review: ReviewTable, image_id: str) -> bytes:
    """Return a frame before and after cleaning, side by side, as PNG.

    Raises:
        Problem: The frame is not held back, or no picture of it was written.
    """
    _find([image_id], review)
    picture = review.picture(image_id)
    if picture is None:
        raise unknown(
            "picture",
            f"there is no picture of '{image_id}': run ingest with deidentify.review_pixels=true "
            "and --overwrite. The pictures are identifiable.",
        )
    return picture


def decide(
    store: Store,
    review: ReviewTable,
    decision: Decision,
    *,
    images: Sequence[str],
    wanted: ReviewFilter | None,
    expected: int | None,
    author: str,
    reason: str,
) -> dict[str, Any]:
    """Record a decision on frames given by their ids, or on all that a filter shows.

    Args:
        store: where it is recorded.
        review: its frames.
        decision: approve, reject or undo.
        images: ids.
        wanted: instead of ids.
        expected: how many frames the filter has shown; others are no longer those decided on.
        author: who decides.
        reason: why.

    Returns:
        How many frames were decided on, and the ids of those that cannot be approved, which were
        left as they are.

    Raises:
        Problem: Neither or both are given, a frame is not held back, or the filter shows another
            number of frames than expected.
    """
    if bool(images) == (wanted is not None):
        raise Problem(422, "invalid", "give either images or a filter.")
    if wanted is not None:
        rows = [row for row in review.rows().values() if wanted.passes(row)]
        if len(rows) != expected:
            raise conflict(f"the filter shows {len(rows)} frames now, not {expected}: look again.")
    else:
        rows = _find(images, review)
    possible = [row for row in rows if row["cleaned"] or decision != "approve"]
    if possible:
        cleaned = {row["image_id"]: row["cleaned"] for row in possible}
        record(store, decision, cleaned, reason=reason, by=author)
    left = [row["image_id"] for row in rows if not row["cleaned"]] if decision == "approve" else []
    return {"decided": len(possible), "left": left}


def _find(images: Sequence[str], review: ReviewTable) -> list[dict[str, Any]]:
    rows = review.rows()
    for image_id in images:
        if image_id not in rows:
            hint = nearest(image_id, rows)
            raise unknown("frame", f"'{image_id}' is not held back for review.{hint}")
    return [rows[image_id] for image_id in dict.fromkeys(images)]


def _item(row: dict[str, Any]) -> dict[str, Any]:
    return {**{name: row[name] for name in _SHOWN}, "approvable": bool(row["cleaned"])}


def _counts(rows: Collection[dict[str, Any]], wanted: ReviewFilter, name: str) -> list[Any]:
    found = Counter(row[name] for row in rows if wanted.passes(row, but=name))
    return [
        {"value": value, "images": count}
        for value, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))
    ][:VALUES_SHOWN]
