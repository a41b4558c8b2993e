"""The labelled sets of an evaluation, loaded once for all candidates."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from echostill.eval.candidates import Model, Unit, build_models
from echostill.eval.datasets import LabelledDataset, TaskSettings, load_dataset
from echostill.eval.heads import check_segmentation
from echostill.eval.probing.candidates import Protocol
from echostill.eval.statistics.family import groups_needed
from echostill.eval.summary import TaskInfo
from echostill.platform.tables.storage import sha256

VERY_FEW = 3  # groups up to which Student's t has so few degrees of freedom that it says nothing

Tasks = dict[tuple[str, int], LabelledDataset]  # by the name of the task and the images' side


def load_tasks(
    settings: Sequence[TaskSettings], units: Sequence[Unit]
) -> tuple[dict[Model, int], Tasks]:
    """Return each model's input side, and the tasks' images at each of these sides.

    Raises:
        UsageError: A model cannot be used for a task.
    """
    models = build_models(units)
    if any(task.kind == "segmentation" for task in settings):
        for encoder in models.values():
            check_segmentation(encoder)
    sizes = {model: encoder.image_size for model, encoder in models.items()}
    datasets = {
        (task.name, size): load_dataset(task, size)
        for task in settings
        for size in sorted(set(sizes.values()))
    }
    return sizes, datasets


def first_of(datasets: Tasks, name: str) -> LabelledDataset:
    """A task's images at the largest side that a model wants."""
    return max((data for (task, _), data in datasets.items() if task == name),
               key=lambda data: data.image_size)  # fmt: skip


def describe_task(
    datasets: Tasks, protocols: dict[str, Protocol], name: str, comparisons: int
) -> dict[str, Any]:
    """Describe a task for the result and the report, among so many planned comparisons."""
    data, protocol = first_of(datasets, name), protocols[name]
    notes = list(data.notes)
    if data.kind == "classification" and protocol.too_many:
        listed = ", ".join(str(count) for count in protocol.too_many)
        notes.append(f"too few groups for few-shot with {listed} groups per class")
    folds = len(protocol.folds.tested)
    official = data.official_split is not None
    return {
        "name": name,
        "kind": data.kind,
        "images": len(data),
        "groups": len(set(data.groups.tolist())),
        "tested": len(protocol.tested),
        "classes": list(data.class_names),
        "notes": notes,
        "warnings": few_groups(data, protocol.tested, comparisons),
        "remarks": [remark.as_dict() for remark in data.remarks],
        "protocol": "official split" if official else f"{folds} folds by group",
    }


def few_groups(data: LabelledDataset, tested: np.ndarray, comparisons: int) -> list[str]:
    """Warn of a set whose tested groups are too few for any difference to be told from chance.

    Args:
        data: The set.
        tested: Rows that are tested.
        comparisons: Number of planned comparisons, over all tasks.
    """
    groups, where = data.groups[tested], ""
    if data.labels is not None:
        labels = data.labels[tested]
        counts = [len(set(groups[labels == k])) for k in range(len(data.class_names))]
        rarest = int(np.argmin(counts))
        fewest, where = counts[rarest], f" of class '{data.class_names[rarest]}'"
    else:
        fewest = len(set(groups))
    needed = groups_needed(comparisons)
    if fewest >= needed:
        return []
    count = f"{fewest} group{'s' if fewest > 1 else ''}{where}"
    width = "its intervals are very wide" if fewest > 1 else "its intervals have no bounds"
    if fewest > VERY_FEW:
        width = "its intervals are wide"
    family = f"{comparisons} planned comparisons" if comparisons > 1 else "the planned comparison"
    none = "no difference can" if comparisons else "nothing could"
    return [
        f"only {count} {'are' if fewest > 1 else 'is'} tested: {width}, and {none} be told from "
        f"chance, which takes at least {needed} groups with {family}. "
        "Test more patients, or draw no conclusion from this set"
    ]


def task_infos(described: list[dict[str, Any]]) -> list[TaskInfo]:
    """Return what a summary needs of an evaluation's tasks."""
    return [TaskInfo(task["name"], task["kind"], tuple(task["classes"])) for task in described]


def digest_of(data: LabelledDataset) -> str:
    """Return a digest of pixels, labels or masks, and groups."""
    targets = data.labels if data.labels is not None else data.masks
    assert targets is not None
    parts = [data.pixels.tobytes(), targets.tobytes(), "\n".join(data.groups.tolist()).encode()]
    return sha256("".join(sha256(part) for part in parts).encode())
