"""The table of predictions: a row per tested image, of each model, method and fold or draw.

Every number of an evaluation is computed from this table (``summary.py``), so that whoever has it
can compute them again, and others too.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from echostill.eval.datasets import LabelledDataset
from echostill.eval.metrics import dice, hausdorff95, intersection_over_union
from echostill.eval.names import FINE_TUNED

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("candidate", pa.string()),
        ("run", pa.string()),
        ("training", pa.int32()),
        ("method", pa.string()),
        ("shots", pa.int32()),
        ("draw", pa.int32()),
        ("fold", pa.int32()),
        ("image", pa.string()),
        ("group_id", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("scores", pa.list_(pa.float64())),
        ("dice", pa.list_(pa.float64())),
        ("iou", pa.list_(pa.float64())),
        ("hd95", pa.list_(pa.float64())),
        ("mask", pa.binary()),
        ("steps", pa.int32()),
        ("converged", pa.bool_()),
    ]
)


class PredictedBy(NamedTuple):
    """Whose predictions they are."""

    candidate: str
    run: str = ""
    training: int = 0


def class_rows(
    origin: PredictedBy,
    dataset: LabelledDataset,
    method: str,
    rows: np.ndarray,
    fold: np.ndarray,
    scores: np.ndarray,
) -> pa.Table:
    """Rows of a classification.

    Args:
        origin: Whose.
        dataset: The task.
        method: The method.
        rows: (M,) tested rows of the dataset.
        fold: (M,) in which they were tested.
        scores: (M, classes); the largest is the predicted class, of equal ones the first.
    """
    return _table(
        origin, dataset, method, rows,
        fold=fold.tolist(),
        predicted=[dataset.class_names[k] for k in scores.argmax(1)],
        scores=scores.tolist(),
    )  # fmt: skip


def few_shot_rows(
    origin: PredictedBy,
    dataset: LabelledDataset,
    method: str,
    rows: np.ndarray,
    predicted: np.ndarray,
    *,
    shots: int,
    draw: int,
) -> pa.Table:
    """Rows of a classification after training on a few groups: without scores, for their size."""
    count = len(rows)
    return _table(
        origin, dataset, method, rows,
        shots=[shots] * count,
        draw=[draw] * count,
        predicted=[dataset.class_names[k] for k in predicted],
    )  # fmt: skip


def mask_rows(
    origin: PredictedBy,
    dataset: LabelledDataset,
    method: str,
    rows: np.ndarray,
    fold: np.ndarray,
    predicted: np.ndarray,
) -> pa.Table:
    """Rows of a segmentation, with each class's overlap and distance, and the mask as PNG.

    Args:
        origin: Whose.
        dataset: The task.
        method: The method.
        rows: (M,) tested rows of the dataset.
        fold: (M,) in which they were tested.
        predicted: (M, S, S) uint8 class indices.
    """
    assert dataset.masks is not None
    values = range(1, len(dataset.class_names) + 1)
    pairs = list(zip(predicted, dataset.masks[rows], strict=True))
    return _table(
        origin, dataset, method, rows,
        fold=fold.tolist(),
        dice=[[dice(own == k, wanted == k) for k in values] for own, wanted in pairs],
        iou=[[intersection_over_union(own == k, wanted == k) for k in values]
             for own, wanted in pairs],
        hd95=[[hausdorff95(own == k, wanted == k) for k in values] for own, wanted in pairs],
        mask=[_png(own) for own in predicted],
    )  # fmt: skip


def with_ends(rows: pa.Table, steps: Sequence[int], converged: Sequence[bool | None]) -> pa.Table:
    """Say of each row after how many steps the fine-tuning that made it ended, and how."""
    for name, values in (("steps", steps), ("converged", converged)):
        field = rows.schema.field(name)
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, field, pa.array(values, field.type))
    return rows


def _table(
    origin: PredictedBy,
    dataset: LabelledDataset,
    method: str,
    rows: np.ndarray,
    **columns: Sequence[object],
) -> pa.Table:
    count = len(rows)
    labels = dataset.labels
    given: dict[str, Sequence[object]] = {
        "task": [dataset.name] * count,
        "candidate": [origin.candidate] * count,
        "run": [origin.run] * count,
        "training": [origin.training] * count,
        "method": [method] * count,
        "shots": [0] * count,
        "draw": [0] * count,
        "fold": [0] * count,
        "image": [dataset.files[row] for row in rows],
        "group_id": dataset.groups[rows].tolist(),
        "label": [""] * count
        if labels is None
        else [dataset.class_names[labels[row]] for row in rows],
        "predicted": [""] * count,
        **columns,
    }
    arrays = [pa.array(given.get(f.name, [None] * count), f.type) for f in PREDICTIONS_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=PREDICTIONS_SCHEMA)


def _png(mask: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, format="PNG")
    return sink.getvalue()


def fine_tunings(rows: pa.Table) -> list[dict[str, Any]]:
    """How the fine-tunings of each candidate on each task ended, one per training and fold.

    ``converged`` ended since the inner side got no better, ``improving`` at the last step while it
    still did, ``unknown`` had too few groups for an inner side.
    """
    if "converged" not in rows.column_names:  # written by an earlier release
        return []
    tuned = rows.filter(pc.equal(rows["method"], FINE_TUNED))
    keys = ["task", "candidate", "training", "fold"]
    each = tuned.group_by([*keys, "steps", "converged"], use_threads=False).aggregate([])
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in each.sort_by([(key, "ascending") for key in keys]).to_pylist():
        if row["steps"] is not None:
            found.setdefault((row["task"], row["candidate"]), []).append(row)
    return [
        {
            "task": task,
            "candidate": candidate,
            "trainings": len(own),
            "converged": sum(row["converged"] is True for row in own),
            "improving": sum(row["converged"] is False for row in own),
            "unknown": sum(row["converged"] is None for row in own),
            "fewest_steps": min(row["steps"] for row in own),
            "most_steps": max(row["steps"] for row in own),
        }
        for (task, candidate), own in found.items()
    ]


def not_converged(ended: dict[str, Any]) -> str:
    """Say which fine-tunings of a candidate are not known to have converged; empty if all are."""
    count = ended["trainings"]
    said = [
        f"{ended[key]} of {count} fine-tunings {words}"
        for key, words in (
            ("improving", "ended while still improving"),
            ("unknown", "had too few groups to see whether they still improve"),
        )
        if ended[key]
    ]
    return ", ".join(said)


def unfinished(endings: Sequence[dict[str, Any]]) -> list[str]:
    """Say of each candidate and task what did not converge, and what to do."""
    return [
        f"{ended['task']}, {ended['candidate']}: {said}"
        + ("; set finetune.steps higher" if ended["improving"] else "")
        for ended in endings
        if (said := not_converged(ended))
    ]
