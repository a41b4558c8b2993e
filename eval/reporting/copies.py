"""Copies in the pool and among the chosen, leaks, and frames that wait for a review."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.eval.reporting.page import Html, heading, paragraph, table
from echostill.platform.tables.ids import rows_of_ids
from echostill.platform.tables.store import Store
from echostill.platform.tables.table import MANIFEST, Table, decode_parquet

NEAR_COPY = 0.98  # cosine of centred features above which two images are near copies
ALL_PAIRS = 20_000  # chosen images up to which all pairs are compared, else those of a cluster
_BLOCK = 1024


@dataclass(frozen=True)
class CopyCounts:
    """What was found; None where nobody looked.

    Attributes:
        duplicates: Copies in the pool that are not kept, by kind.
        leaks: Pool images that are in a benchmark, by benchmark.
        waiting: Frames that were held back and that nobody approved or rejected yet.
        near_copies: Chosen images that are a near copy of another chosen one.
    """

    duplicates: dict[str, int] | None = None
    leaks: dict[str, int] | None = None
    waiting: int | None = None
    near_copies: int | None = None


def count_copies(store: Store, scores: Table, coreset: pa.Table) -> CopyCounts:
    """Count what the store's tables say, and compare the features of the chosen images."""
    duplicates = leaks = waiting = None
    if store.duplicates().exists(MANIFEST):
        rows = Table.open(store.duplicates(), "duplicates").read(["kept", "kind"])
        duplicates = dict(Counter(rows.filter(pc.invert(rows["kept"]))["kind"].to_pylist()))
    if store.leaks().exists(MANIFEST):
        rows = Table.open(store.leaks(), "leakcheck").read(["benchmark"])
        leaks = dict(Counter(rows["benchmark"].to_pylist()))
    if store.table("review").exists(MANIFEST):
        waiting = frames_that_wait(store)
    return CopyCounts(duplicates, leaks, waiting, _near_copies(scores, coreset))


def frames_that_wait(store: Store) -> int:
    """Count the frames of the review table that nobody approved or rejected.

    Decisions are files beside the table, named by their time: the latest on a frame counts, if it
    was made on the pixels that the table has now.
    """
    decided: dict[str, str | None] = {}
    folder = store.storage.at("review").at("approvals")
    for name in folder.list():
        for row in decode_parquet(folder.read(name)).to_pylist():
            taken_back = row.get("decision") == "undo"
            decided[row["image_id"]] = None if taken_back else row["cleaned"]
    held = Table.open(store.table("review"), "ingest").read(["image_id", "cleaned"]).to_pylist()
    return sum(decided.get(row["image_id"]) != row["cleaned"] for row in held)


def _near_copies(scores: Table, coreset: pa.Table) -> int:
    chosen = coreset.filter(coreset["selected"])
    if not len(chosen):
        return 0
    total, count = np.zeros(1), 0
    ids, kept = [], []
    for part in scores.parts(["image_id", "feature"]):
        features = _matrix(part["feature"])
        total, count = total + features.sum(0, dtype=np.float64), count + len(features)
        wanted = pc.is_in(part["image_id"], value_set=chosen["image_id"].combine_chunks())
        ids += part["image_id"].filter(wanted).to_pylist()
        kept.append(features[wanted.to_numpy()])
    mean = (total / max(count, 1)).astype(np.float32)
    order = rows_of_ids(
        chosen["image_id"], pa.chunked_array([pa.array(ids, pa.string())]),
        what="images of the coreset", where="the scores",
        advice="Run echostill score and echostill select again.",
    )  # fmt: skip
    cluster = chosen["cluster"].to_numpy() if len(chosen) > ALL_PAIRS else np.zeros(len(chosen))
    return near_copies(np.concatenate(kept)[order] - mean, cluster)


def near_copies(centred: np.ndarray, cluster: np.ndarray) -> int:
    """Count the images with another one of their cluster at a cosine above ``NEAR_COPY``.

    Args:
        centred: (N, D) float32 features, centred by the mean of the pool's.
        cluster: (N,) numbers.
    """
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    found = 0
    for number in np.unique(cluster):
        own = unit[cluster == number]
        for start in range(0, len(own), _BLOCK):
            cosine = own[start : start + _BLOCK] @ own.T
            rows = np.arange(len(cosine))
            cosine[rows, start + rows] = -1.0
            found += int((cosine.max(1) > NEAR_COPY).sum())
    return found


def copies(counts: CopyCounts, chosen: int) -> list[Html]:
    """Show what was found, and say where nobody looked."""
    rows = [
        ("Copies in the pool that are not kept", *_written(counts.duplicates, "duplicates")),
        ("Pool images that are in a benchmark", *_written(counts.leaks, "leakcheck")),
        (
            "Frames that wait for a review",
            "–" if counts.waiting is None else f"{counts.waiting:,}",
            "none" if not counts.waiting else "echostill review",
        ),
    ]
    if counts.near_copies is not None:
        share = f"{counts.near_copies / max(chosen, 1):.1%} of the {chosen:,} chosen"
        if chosen > ALL_PAIRS:
            share += ", compared with those of their cluster"
        rows.append(
            ("Chosen images that are near copies of another chosen one",
             f"{counts.near_copies:,}", f"{share}; cosine of centred features above {NEAR_COPY}")
        )  # fmt: skip
    return [
        heading("Copies, leaks and frames that wait"),
        paragraph("Copies say little that is new; a leak makes an evaluation look too good."),
        table(["What", "Images", "Detail"], rows, "Counted in the tables of the store.",
              words=frozenset({0, 2})),
    ]  # fmt: skip


def _written(found: dict[str, int] | None, command: str) -> tuple[str, str]:
    if found is None:
        return "–", f"nobody looked: echostill {command}"
    listed = ", ".join(f"{name} {number:,}" for name, number in sorted(found.items()))
    return f"{sum(found.values()):,}", listed or "none"


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: np.ndarray = np.asarray(flat, dtype=np.float32).reshape(len(column), -1)
    return matrix
