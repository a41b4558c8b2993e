"""Review of frames that were held back: the review table, its pictures, and who passes.

Frames that de-identification holds back are in ingest's quarantine as ``NeedsReview``; the review
table is made from it. What people decide on them is in ``decisions``.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from echostill.curation.deidentification import decisions
from echostill.curation.deidentification.decisions import (
    OPEN,
    Decision,
    latest,
    review_storage,
    state_of,
)
from echostill.curation.deidentification.verdict import Cleaned, split_context
from echostill.platform.errors import UsageError, nearest
from echostill.platform.imaging.images import encode_png, resize_longest
from echostill.platform.shards.stage import ShardedStage
from echostill.platform.tables.storage import Storage
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import (
    MANIFEST,
    Table,
    decode_parquet,
    write_table,
)
from echostill.platform.withdrawal.tombstones import Tombstones

NEEDS_REVIEW = "NeedsReview"
PICTURES = "IDENTIFIABLE-PIXELS"  # the name of the folder is a warning that nobody can overlook
_WARNING = b"""These pictures may show names, dates and numbers of patients.
They were written because deidentify.review_pixels or deidentify.contact_sheet was set.
Look at them where the original files may be looked at, and delete the folder afterwards.
"""
_THUMBNAIL = 320
_SHORTEST_PREFIX = 4

_BOX = pa.list_(pa.field("element", pa.int32()))
REVIEW_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("source", pa.string()),  # as in the pool: a name, or its keyed hash
        ("reason", pa.string()),  # text, sector, redaction, declared, or failed and the error class
        ("score", pa.float32()),  # of the most likely text in the sector
        ("boxes", pa.list_(pa.field("element", _BOX))),  # left, top, right, bottom in pixels
        ("confidence", pa.float32()),  # of the sector
        ("method", pa.string()),  # how the sector was found
        ("cleaned", pa.string()),  # hash of the pixels that an approval accepts
        ("redacted", pa.float32()),  # share of the sector that was blackened
        ("organ", pa.string()),
        ("device", pa.string()),
        ("group_id", pa.string()),  # as in the pool
    ]
)


@dataclass
class ReviewGate:
    """Where a worker's frames pass by: approvals let some through, pictures are put aside.

    Attributes:
        approved: Hash of the approved cleaned pixels, by image id.
        pictures: Where pictures go; None writes none.
        held_back: Whether every frame that is held back is written.
        sample: Frames of the current shard for the contact sheet.
        lenient: Whether doubtful frames pass as they were cleaned: for readers that store none.
        tombstones: Of what was withdrawn and must not come in again.
    """

    approved: Mapping[str, str] = field(default_factory=dict)
    pictures: Storage | None = None
    held_back: bool = False
    sample: int = 0
    lenient: bool = False
    tombstones: Tombstones = field(default_factory=Tombstones)
    _aside: list[tuple[str, np.ndarray]] = field(default_factory=list)

    def passes(self, image_id: str, cleaned: Cleaned) -> bool:
        """Return whether a frame may be stored: it is clean, or these very pixels are approved."""
        verdict = cleaned.verdict
        if cleaned.pixels is None:
            return False
        return verdict.clean or self.lenient or self.approved.get(image_id) == verdict.cleaned != ""

    def look(self, image_id: str, before: np.ndarray, cleaned: Cleaned) -> None:
        """Keep a picture of the frame, before and after, where one is wanted."""
        if self.pictures is None:
            return
        if self.held_back and not self.passes(image_id, cleaned):
            self.pictures.write(f"{image_id}.png", encode_png(_pair(before, cleaned)))
        if self.sample:
            # The smallest hashes of ids are a fair sample, the same on any number of workers.
            self._aside.append((image_id, _pair(before, cleaned, _THUMBNAIL)))
            self._aside.sort(key=lambda item: hashlib.sha256(item[0].encode()).digest())
            del self._aside[self.sample :]

    def forget(self, image_id: str) -> None:
        """Delete the picture of a frame that must not come in, and leave it out of the sheet."""
        if self.pictures is not None:
            self.pictures.delete(f"{image_id}.png")
            self._aside = [item for item in self._aside if item[0] != image_id]

    def finish(self, name: str) -> None:
        """Write the contact sheet of a shard and forget its frames."""
        if self.pictures is not None and self._aside:
            self.pictures.write(f"contact-sheet-{name}.png", encode_png(_sheet(self._aside)))
        self._aside.clear()


def prepare_pictures(store: Store) -> Storage:
    """Create the folder of identifiable pictures, with its warning, and return it."""
    pictures = review_storage(store).at(PICTURES)
    pictures.write("READ-ME.txt", _WARNING)
    return pictures


def write_review(store: Store, stage: ShardedStage, records: Mapping[int, dict[str, Any]]) -> int:
    """Write the review table from the quarantine of a finished ingest; return its row count."""
    rows = [row for index in sorted(records) for row in _held_back(stage, records[index])]
    table = pa.Table.from_pylist(rows, schema=REVIEW_SCHEMA)
    made_from = stage.fingerprint.as_dict()
    write_table(review_storage(store), table, stage=stage.name, fingerprint=made_from)
    frames: int = table.num_rows
    return frames


def _held_back(stage: ShardedStage, record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the frames of a shard that were held back for review, as rows of the table."""
    if record["quarantine"] is None:
        return []
    quarantined = decode_parquet(stage.quarantine.read(record["quarantine"]["file"])).to_pylist()
    return [_review_row(row) for row in quarantined if row["error_class"] == NEEDS_REVIEW]


def _review_row(row: dict[str, Any]) -> dict[str, Any]:
    verdict, context = split_context(row["message"])
    return {
        "image_id": row["id"],
        "source": row["source"],
        "reason": verdict.reason,
        "score": verdict.score,
        "boxes": [list(box) for box in verdict.boxes],
        "confidence": verdict.confidence,
        "method": verdict.method,
        "cleaned": verdict.cleaned,
        "redacted": verdict.redacted,
        "organ": context.organ,
        "device": context.device,
        "group_id": context.group,
    }


def reopen(
    stage: ShardedStage, shards: Sequence[object | None], approved: Mapping[str, str]
) -> int:
    """Mark the finished shards that have approved frames as unfinished, to read them again.

    Args:
        stage: The ingest.
        shards: What each shard is read from; None for one that cannot be read now.
        approved: Hash of the approved cleaned pixels, by image id.

    Returns:
        Number of these shards.
    """
    reopened = 0
    for index, record in stage.finished(len(shards)).items() if approved else ():
        if shards[index] is None:
            continue
        rows = _held_back(stage, record)
        if any(row["cleaned"] and approved.get(row["image_id"]) == row["cleaned"] for row in rows):
            stage.table.delete(MANIFEST)  # first: a table with a missing shard must not have one
            stage.table.delete(f"done/{index:05d}.json")
            reopened += 1
    return reopened


def waiting(root: str) -> list[dict[str, Any]]:
    """Return the frames of a store held back for review, and what was decided on each.

    Raises:
        UsageError: The store has no review table.
    """
    store = Store(root)
    rows: list[dict[str, Any]] = Table.open(review_storage(store), "ingest").read().to_pylist()
    decided = latest(store)
    return [{**row, **state_of(row, decided)} for row in rows]


def describe(root: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the result of :func:`waiting` as text."""
    lines = [f"{'image':<34}{'reason':<22}{'text':>5}{'sector':>8}  {'boxes':<8}source"]
    for row in rows:
        mark = f"  {row['state']} by {row['decided_by']}" if row["state"] != OPEN else ""
        lines.append(
            f"{row['image_id']:<34}{row['reason']:<22}{row['score']:>5.2f}"
            f"{row['confidence']:>8.2f}  {len(row['boxes']):<8}{row['source']}{mark}"
        )
    waits = sum(row["state"] == OPEN for row in rows)
    return "\n".join([*(lines if rows else []), f"{root}: {waits} of {len(rows)} wait for review"])


def decide(
    root: str, decision: Decision, wanted: Sequence[str], *, reason: str, by: str | None = None
) -> int:
    """Record a decision on frames that were held back.

    Args:
        root: The store.
        decision: ``approve``: the next ingest adds the frames to the pool, as cleaned. ``reject``:
            they stay held back and no longer wait. ``undo``: they wait again.
        wanted: Image ids, unique prefixes of ids, or files with one of these per line.
        reason: Why.
        by: Who decides; default the user of this machine.

    Returns:
        Number of frames.

    Raises:
        UsageError: A frame is not held back for review, or has no cleaned pixels to approve; or no
            reason is given.
    """
    rows = {row["image_id"]: row for row in waiting(root)}
    chosen = [_find(name, rows) for name in _names(wanted)]
    if not chosen:
        raise UsageError(
            f"no frames given: --{decision} expects image ids, or a file with image ids."
        )
    for row in chosen:
        if decision == "approve" and not row["cleaned"]:
            raise UsageError(
                f"'{row['image_id']}' cannot be approved: cleaning {row['reason']}, so there are "
                "no cleaned pixels to approve."
            )
    cleaned = {row["image_id"]: row["cleaned"] for row in chosen}
    return decisions.record(Store(root), decision, cleaned, reason=reason, by=by)


def _names(wanted: Iterable[str]) -> list[str]:
    names: list[str] = []
    for name in wanted:
        if Path(name).is_file():
            names += Path(name).read_text(encoding="utf-8").split()
        else:
            names.append(name)
    return list(dict.fromkeys(names))


def _find(name: str, rows: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if name in rows:
        return rows[name]
    matches = [key for key in rows if key.startswith(name)]
    if len(matches) == 1 and len(name) >= _SHORTEST_PREFIX:
        return rows[matches[0]]
    if len(matches) > 1:
        raise UsageError(f"'{name}' is the beginning of {len(matches)} ids: give more characters.")
    raise UsageError(f"'{name}' is not held back for review.{nearest(name, rows)}")


def _pair(before: np.ndarray, cleaned: Cleaned, side: int | None = None) -> np.ndarray:
    """Return the frame before and after side by side, with boxes around likely text; RGB."""
    left = Image.fromarray(before).convert("RGB")
    pen = ImageDraw.Draw(left)
    for x0, y0, x1, y1 in cleaned.verdict.boxes:
        pen.rectangle((x0 - 2, y0 - 2, x1 + 1, y1 + 1), outline=(255, 64, 64))
    after = np.zeros_like(before) if cleaned.pixels is None else cleaned.pixels
    halves = [np.asarray(left), np.asarray(Image.fromarray(after).convert("RGB"))]
    if side is not None:
        halves = [resize_longest(half, side) for half in halves]
    gap = np.full((halves[0].shape[0], 4, 3), 96, dtype=np.uint8)
    return np.concatenate([halves[0], gap, halves[1]], axis=1)


def _sheet(pairs: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Return pairs stacked vertically, each below the first characters of its id."""
    width = max(pair.shape[1] for _, pair in pairs)
    height = sum(pair.shape[0] + 14 for _, pair in pairs)
    sheet = Image.new("RGB", (width, height), (32, 32, 32))
    pen, y = ImageDraw.Draw(sheet), 0
    for image_id, pair in pairs:
        pen.text((2, y + 1), f"{image_id[:16]}  before | after", fill=(255, 255, 0))
        sheet.paste(Image.fromarray(pair), (0, y + 14))
        y += pair.shape[0] + 14
    return np.asarray(sheet)
