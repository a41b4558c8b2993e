"""What stays of a measurement when its rows are gone: predictions of each training, and results."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from evidence_rows import Row

from echostill.eval.datasets import LabelledDataset

Arms = dict[str, dict[int, Row]]
Family = list[dict[str, Any]]


def write_predictions(
    experiments: dict[str, Arms], tasks: list[LabelledDataset], out: Path
) -> None:
    """Write ``predictions.parquet``, and ``tasks.parquet`` with the truth in the same order.

    Args:
        experiments: By experiment and arm, the trainings by seed.
        tasks: The tasks, whose rows are images.
        out: Folder of both.
    """
    told = [
        {"experiment": name, "arm": arm, "seed": seed, "task": task, "predicted": classes.tolist()}
        for name, arms in experiments.items()
        for arm, seeds in arms.items()
        for seed, row in sorted(seeds.items())
        for task, classes in row.predictions.items()
    ]
    schema = pa.schema(
        {
            "experiment": pa.string(),
            "arm": pa.string(),
            "seed": pa.int32(),
            "task": pa.string(),
            "predicted": pa.list_(pa.int8()),
        }
    )
    pq.write_table(pa.Table.from_pylist(told, schema), out / "predictions.parquet")
    groups = [np.unique(task.groups, return_inverse=True)[1].tolist() for task in tasks]
    truth = {
        "task": [task.name for task in tasks],
        "classes": [list(task.class_names) for task in tasks],
        "label": [task.labels.tolist() for task in tasks if task.labels is not None],
        "group": groups,  # numbered: who a group is does not matter here
    }
    pq.write_table(pa.table(truth), out / "tasks.parquet")


def beside(found: dict[str, Any], held: dict[str, Any]) -> dict[str, Any]:
    """Add to an experiment's results what earlier ones have and these lack.

    An arm is taken from where it has more trainings, a family of comparisons, which is judged as a
    whole, from where more of it could be judged; in a tie from the new results.
    """

    def fuller(one: Family, other: Family) -> Family:
        return max(one, other, key=judged)  # the first, in a tie

    arms = {}
    for arm in [*held["arms"], *found["arms"]]:
        both = [each["arms"][arm] for each in (found, held) if arm in each["arms"]]
        arms[arm] = max(both, key=lambda values: values["seeds"])
    return {
        **found,
        "arms": arms,
        "primary": fuller(found["primary"], held["primary"]),
        "added": {
            name: fuller(family, held["added"].get(name, []))
            for name, family in found["added"].items()
        },
    }


def judged(family: Family) -> int:
    """Count the comparisons of a family that had rows."""
    return sum("missing" not in entry for entry in family)
