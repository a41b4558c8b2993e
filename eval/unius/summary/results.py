"""The rows of a run, put together: a metric with its interval for each task and candidate.

The metric of classification is balanced accuracy, that of segmentation Dice at the input's size,
that of detection the mean average precision. All seeds of a candidate are trainings of it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.eval.statistics.bootstrap import (
    GroupSums,
    Resampled,
    difference,
    estimate,
    mean_sums,
    recall_sums,
)
from echostill.eval.statistics.family import Conclusion, conclude
from echostill.eval.unius.running.rows import Row

# The first of these that a task was measured by is what the page is about.
METHODS = ("fine-tuned", "linear probe", "box head")
METRICS = {"classification": "balanced_accuracy", "segmentation": "dice", "detection": "map"}
# What the other candidates are compared with.
REFERENCES = ("untrained", "teacher", "thumbnail")


@dataclass(frozen=True)
class TaskResults:
    """The results of all candidates on one task by one protocol.

    Attributes:
        name: Name of the task.
        kind: classification, segmentation or detection.
        protocol: frozen or published.
        organs: Organs of the set.
        method: Probe or head that the page is about.
        rows: For each candidate its rows and predictions, a pair for each seed.
    """

    name: str
    kind: str
    protocol: str
    organs: tuple[str, ...]
    method: str
    rows: dict[str, tuple[tuple[Row, pa.Table], ...]]

    @property
    def metric(self) -> str:
        """Name of the metric that the page is about."""
        return METRICS[self.kind]

    @cached_property
    def sums(self) -> dict[str, GroupSums]:
        """For each candidate the metric's sums by group, from the predictions; not of detection."""
        if self.kind == "detection":
            return {}
        return {name: self._sums(pairs) for name, pairs in self.rows.items()}

    @cached_property
    def estimates(self) -> dict[str, Resampled]:
        """For each candidate the metric with its interval."""
        return {name: estimate(sums, of=self.name) for name, sums in self.sums.items()}

    def compare(self, first: str, second: str) -> Resampled:
        """Return by how much the first candidate is better than the second."""
        return difference(self.sums[first], self.sums[second], of=self.name)

    def mean(
        self,
        candidate: str,
        metric: str,
        method: str = "",
        condition: str = "clean",
        share: float = 1.0,
    ) -> float | None:
        """Return a metric's mean over the seeds; None where it was not measured."""
        wanted = (method or self.method, condition, share)
        values = [
            one["metrics"][metric]
            for row, _ in self.rows.get(candidate, ())
            for one in row["measured"]
            if (one["method"], one["condition"], one["share"]) == wanted
            and metric in one["metrics"]
        ]
        return float(np.mean(values)) if values else None

    def _sums(self, pairs: Sequence[tuple[Row, pa.Table]]) -> GroupSums:
        tables = []
        for _, table in pairs:
            own = table.filter(
                (pc.field("method") == self.method)
                & (pc.field("condition") == "clean")
                & (pc.field("share") == 1.0)
            )
            tables.append(own.sort_by("id"))
        groups = np.array(tables[0]["group"].to_pylist())
        values = np.array([table["values"].to_pylist() for table in tables])  # (R, N, C)
        if self.kind == "segmentation":
            return mean_sums(values, groups)
        labels = np.array(tables[0]["target"].to_pylist(), dtype=np.int64)
        return recall_sums(labels, values.argmax(2), groups, values.shape[2])


@dataclass(frozen=True)
class Difference:
    """A planned comparison and what may be said of it."""

    task: TaskResults
    candidate: str
    reference: str
    conclusion: Conclusion


class BenchResults:
    """Everything that a page says, by task and candidate."""

    def __init__(self, rows: Sequence[tuple[Row, pa.Table]], costs: dict[str, Any]) -> None:
        """Put rows together.

        Args:
            rows: From :func:`read_rows`.
            costs: For each candidate what :func:`efficiency` gives.
        """
        self.costs = costs
        current, self.outdated = _of_one_preparation(rows)
        self.tasks = _tasks(current)
        names = [name for task in self.tasks for name in task.rows]
        self.candidates = list(dict.fromkeys(sorted(names)))
        self.shares = sorted({o["share"] for row, _ in current for o in row["measured"]})
        self.conditions = sorted(
            {o["condition"] for row, _ in current for o in row["measured"]} - {"clean"}
        )

    def of(self, protocol: str, kind: str) -> list[TaskResults]:
        """Return the tasks of a kind that were measured by a protocol."""
        return [t for t in self.tasks if (t.protocol, t.kind) == (protocol, kind)]

    @property
    def protocols(self) -> list[str]:
        """The protocols that there are results of."""
        return list(dict.fromkeys(task.protocol for task in self.tasks))

    def average(
        self, tasks: Sequence[TaskResults], candidate: str, metric: str, **which: Any
    ) -> float | None:
        """Return a mean over tasks; None unless the candidate was measured on each of them."""
        values = [task.mean(candidate, metric, **which) for task in tasks]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if values and len(known) == len(values) else None

    def differences(self) -> list[Difference]:
        """Compare each candidate with the references, on each task; all are one family."""
        planned = [
            (task, name, reference)
            for task in self.tasks
            for reference in REFERENCES
            if reference in task.sums
            for name in task.sums
            if name not in REFERENCES or REFERENCES.index(name) > REFERENCES.index(reference)
        ]
        found = conclude([task.compare(name, other) for task, name, other in planned])
        return [Difference(*one, word) for one, word in zip(planned, found, strict=True)]


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return each candidate's mean rank over tasks, the best has 1, ties share their mean.

    Args:
        values: (tasks, candidates), higher is better.
    """
    from scipy import stats

    ranks: np.ndarray = stats.rankdata(-values, axis=1).mean(axis=0)
    return ranks


def critical_difference(candidates: int, tasks: int, level: float = 0.05) -> float:
    """Mean ranks that are nearer than this are not distinguished (Nemenyi's test).

    q sqrt(k (k + 1) / (6 n)), q the studentised range's quantile over sqrt(2): Demsar,
    "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.
    """
    from scipy import stats

    quantile = float(stats.studentized_range.ppf(1 - level, candidates, np.inf)) / np.sqrt(2)
    return float(quantile * np.sqrt(candidates * (candidates + 1) / (6 * tasks)))


def _of_one_preparation(
    rows: Sequence[tuple[Row, pa.Table]],
) -> tuple[list[tuple[Row, pa.Table]], int]:
    """Keep the rows of one preparation of each set, the one with most rows; count the others."""
    counts: dict[str, Counter[str]] = {}
    for row, _ in rows:
        counts.setdefault(row["set"], Counter())[row["table"]] += 1
    chosen = {name: max(sorted(found), key=found.__getitem__) for name, found in counts.items()}
    kept = [pair for pair in rows if pair[0]["table"] == chosen[pair[0]["set"]]]
    return kept, len(rows) - len(kept)


def _tasks(rows: Sequence[tuple[Row, pa.Table]]) -> list[TaskResults]:
    found: dict[tuple[str, str], dict[str, list[tuple[Row, pa.Table]]]] = {}
    for row, table in rows:
        task = found.setdefault((row["task"], row["protocol"]), {})
        task.setdefault(row["candidate"], []).append((row, table))
    tasks = []
    for (name, protocol), candidates in sorted(found.items()):
        first = next(iter(candidates.values()))[0][0]
        measured = {one["method"] for one in first["measured"]}
        method = next(method for method in METHODS if method in measured)
        pairs = {candidate: tuple(each) for candidate, each in candidates.items()}
        organs = tuple(first["organs"])
        tasks.append(TaskResults(name, first["kind"], protocol, organs, method, pairs))
    return tasks
