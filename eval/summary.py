"""All numbers of an evaluation, computed from its table of predictions and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from echostill.eval.comparisons import Pair, judge, within
from echostill.eval.metrics import classification_metrics
from echostill.eval.names import CONSTANT, FINE_TUNED, LINEAR, TRIVIAL
from echostill.eval.statistics.bootstrap import (
    GroupSums,
    Resampled,
    difference,
    estimate,
    mean_sums,
    recall_sums,
)

PRIMARY = {"classification": "balanced_accuracy", "segmentation": "dice"}


class TaskInfo(NamedTuple):
    """What of a task its predictions do not say."""

    name: str
    kind: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Predicted:
    """One candidate's predictions by one method, sorted by image, (R, N, ...) for R trainings."""

    task: TaskInfo
    images: list[str]
    groups: np.ndarray  # (N,)
    labels: np.ndarray  # (N,) int64; of a segmentation 0
    predicted: np.ndarray  # (R, N) int64; of a segmentation 0
    values: dict[str, np.ndarray]  # scores, or dice, iou and hd95: (R, N, C)
    runs: list[str]

    @classmethod
    def of(cls, task: TaskInfo, rows: pa.Table) -> "Predicted":
        """Take rows of one candidate and method, with as many rows of each training."""
        rows = rows.sort_by([("training", "ascending"), ("image", "ascending")])
        runs = rows["training"].to_numpy()
        count = int((runs == runs[0]).sum())
        classification = task.kind == "classification"
        index = {name: place for place, name in enumerate(task.classes)}

        def coded(column: str) -> np.ndarray:
            names = rows[column].to_pylist() if classification else [task.classes[0]] * len(rows)
            return np.array([index[name] for name in names], dtype=np.int64).reshape(-1, count)

        names = ("scores",) if classification else ("dice", "iou", "hd95")
        values = {}
        for name in names:
            if rows[name].null_count == 0:
                flat = rows[name].combine_chunks().flatten().to_numpy()
                values[name] = flat.reshape(-1, count, len(task.classes))
        return cls(
            task,
            rows["image"].to_pylist()[:count],
            np.array(rows["group_id"].to_pylist()[:count]),
            coded("label")[0],
            coded("predicted"),
            values,
            rows["run"].to_pylist()[::count],
        )

    @cached_property
    def sums(self) -> GroupSums:
        """Sums of the task's first metric."""
        if self.task.kind == "segmentation":
            return mean_sums(self.values["dice"], self.groups)
        return recall_sums(self.labels, self.predicted, self.groups, len(self.task.classes))

    def metrics(self, training: int) -> dict[str, float]:
        """Return all metrics of a training."""
        if self.task.kind == "segmentation":
            means = {name: own[training].mean(0) for name, own in self.values.items()}
            found = {name: float(own.mean()) for name, own in means.items()}
            if len(self.task.classes) > 1:
                for name in ("dice", "hd95"):
                    pairs = zip(self.task.classes, means[name], strict=True)
                    found |= {f"{name} {label}": float(value) for label, value in pairs}
            return found
        predicted, labels = self.predicted[training], self.labels
        if "scores" in self.values:
            found = classification_metrics(labels, self.values["scores"][training])
        else:
            found = {"balanced_accuracy": float(self.sums.observed()[training])}
        for place, name in enumerate(self.task.classes):
            own = labels == place
            if own.any():
                found[f"recall {name}"] = float((predicted[own] == place).mean())
        return found


class Numbers:
    """Numbers of an evaluation: metrics, intervals, comparisons, flags."""

    def __init__(self, rows: pa.Table, tasks: Sequence[TaskInfo], seed: int) -> None:
        """Group the predictions.

        Args:
            rows: The table of predictions.
            tasks: The tasks.
            seed: Seed of the bootstrap.
        """
        self.tasks = {task.name: task for task in tasks}
        self.seed = seed
        keys = ["task", "candidate", "method", "shots", "draw"]
        rows = rows.append_column("row", pa.array(np.arange(rows.num_rows)))
        grouped = rows.group_by(keys, use_threads=False).aggregate([("row", "list")])
        self.found: dict[tuple[str, str, str, int, int], Predicted] = {}
        for entry in grouped.to_pylist():
            key = (
                entry["task"], entry["candidate"], entry["method"], entry["shots"], entry["draw"],
            )  # fmt: skip
            own = rows.take(pa.array(entry["row_list"]))
            self.found[key] = Predicted.of(self.tasks[entry["task"]], own)

    def results(self) -> list[dict[str, Any]]:
        """Metrics of every candidate, method and training; few-shot draw by draw."""
        rows = []
        for (task, candidate, method, shots, draw), own in self.found.items():
            for training, run in enumerate(own.runs):
                metrics = own.metrics(training)
                constant = self._of(task, CONSTANT, CONSTANT)
                if "dice" in metrics and constant is not None:
                    metrics["dice_gain"] = metrics["dice"] - constant.metrics(0)["dice"]
                rows.append(
                    {
                        "task": task,
                        "candidate": candidate,
                        "method": f"{method} {shots}" if shots else method,
                        "training": training,
                        "draw": draw,
                        "run": run,
                        "metrics": metrics,
                    }
                )
        return rows

    def chance(self, task: str) -> float | None:
        """The first metric without knowledge of the image: of a constant answer."""
        if self.tasks[task].kind == "classification":
            return 1 / len(self.tasks[task].classes)
        own = self._of(task, CONSTANT, CONSTANT)
        return None if own is None else own.metrics(0)["dice"]

    def estimates(self) -> list[dict[str, Any]]:
        """The first metric of every candidate and method with its interval."""
        rows = []
        for task, candidate, method, shots, _ in self.found:
            if shots:
                continue
            found = self._estimate(task, candidate, method)
            assert found is not None
            low, high = within(found.interval(), 0.0)
            rows.append(
                {
                    "task": task,
                    "candidate": candidate,
                    "method": method,
                    "metric": PRIMARY[self.tasks[task].kind],
                    "value": found.value,
                    "low": low,
                    "high": high,
                    "groups": found.groups,
                    "trainings": max(len(self.found[task, candidate, method, 0, 0].runs), 1),
                }
            )
        return rows

    def comparisons(self, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
        """The planned comparisons on every task, as one family."""
        return judge(
            self._planned(pairs), self.difference, self._near_chance, self._several_trainings
        )

    def not_made(self, pairs: Sequence[Pair]) -> list[list[str]]:
        """The planned comparisons that lack predictions: task, both candidates, method."""
        return [list(planned) for planned in self._planned(pairs) if not self._both(*planned)]

    def _planned(self, pairs: Sequence[Pair]) -> list[tuple[str, str, str, str]]:
        return [(task, *pair) for task in self.tasks for pair in pairs]

    def flags(self) -> list[dict[str, Any]]:
        """Every model and method against the better of the trivial candidates.

        A flag says that the interval of the difference, at the level of one comparison, does not
        lie above 0.
        """
        rows = []
        for task, candidate, method, shots, _ in self.found:
            if shots or candidate in TRIVIAL:
                continue
            known = [
                (own.value, name)
                for name in TRIVIAL
                if (own := self._estimate(task, name, method)) is not None
            ]
            if not known:
                continue
            against = max(known)[1]
            found = self.difference(task, candidate, against, method)
            if found is None:
                continue
            low, high = within(found.interval(), -1.0)
            rows.append(
                {
                    "task": task,
                    "candidate": candidate,
                    "method": method,
                    "against": against,
                    "value": found.value,
                    "low": low,
                    "high": high,
                    "ahead": low > 0,
                }
            )
        return rows

    def difference(self, task: str, first: str, second: str, method: str) -> Resampled | None:
        """Return the paired difference of two candidates; None where one has no predictions."""
        both = self._both(task, first, second, method)
        if both is None:
            return None
        return difference(both[0].sums, both[1].sums, seed=self.seed, of=task)

    def _both(
        self, task: str, first: str, second: str, method: str
    ) -> tuple[Predicted, Predicted] | None:
        own, other = self._of(task, first, method), self._of(task, second, method)
        if own is None or other is None or own.images != other.images:
            return None
        return own, other

    def _several_trainings(self, task: str, first: str, second: str, method: str) -> bool:
        models = [self._of(task, name, method) for name in (first, second) if name not in TRIVIAL]
        return all(own is not None and len(own.runs) > 1 for own in models)

    def _of(self, task: str, candidate: str, method: str) -> Predicted | None:
        """A candidate's predictions; the trivial ones have methods of their own."""
        if candidate == CONSTANT:
            method = CONSTANT
        elif candidate in TRIVIAL and (task, candidate, method, 0, 0) not in self.found:
            method = LINEAR
        return self.found.get((task, candidate, method, 0, 0))

    def _estimate(self, task: str, candidate: str, method: str) -> Resampled | None:
        own = self._of(task, candidate, method)
        return None if own is None else estimate(own.sums, seed=self.seed, of=task)

    def _near_chance(self, candidate: str, task: str, method: str) -> bool:
        """Whether a candidate is not ahead of a constant answer, by the interval alone."""
        found = self.difference(task, candidate, CONSTANT, method)
        return found is None or found.interval()[0] <= 0


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


def summarise(
    rows: pa.Table, tasks: Sequence[TaskInfo], pairs: Sequence[Pair], seed: int
) -> dict[str, Any]:
    """Compute all numbers of an evaluation."""
    summary = Numbers(rows, tasks, seed)
    return {
        "results": summary.results(),
        "estimates": summary.estimates(),
        "comparisons": summary.comparisons(pairs),
        "not_made": summary.not_made(pairs),
        "flags": summary.flags(),
        "fine_tunings": fine_tunings(rows),
        "chance": {task.name: summary.chance(task.name) for task in tasks},
    }
