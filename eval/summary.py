"""All numbers of an evaluation, computed from its table of predictions and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from echostill.eval.comparisons import Pair, judge, within
from echostill.eval.metrics import classification_metrics
from echostill.eval.names import CONSTANT, FEW_SHOT, LINEAR, TRIVIAL
from echostill.eval.predictions import fine_tunings
from echostill.eval.statistics.bootstrap import (
    GroupSums,
    Resampled,
    difference,
    estimate,
    mean_sums,
    recall_sums,
)
from echostill.eval.statistics.draws import (
    DrawnSums,
    drawn_difference,
    drawn_estimate,
    drawn_recalls,
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

    def few_shot(self, pairs: Sequence[Pair]) -> dict[str, list[dict[str, Any]]]:
        """Few-shot classifiers: their intervals, and the planned pairs as a family of their own.

        A pair is compared by every number of groups that its task has, whatever method it was
        planned with.
        """
        few = FewShot(self.found, self.seed)
        twos = dict.fromkeys((first, second) for first, second, _ in pairs)
        methods = dict.fromkeys((task, shots) for task, _, shots in few.drawn)
        planned = [
            (task, first, second, f"{FEW_SHOT} {shots}")
            for task, shots in methods
            for first, second in twos
        ]
        return {
            "estimates": few.estimates(),
            "comparisons": judge(planned, few.difference, few.near_chance, few.several_trainings),
        }

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


class FewShot:
    """Numbers of the few-shot classifiers: means over the draws of groups."""

    def __init__(self, found: dict[tuple[str, str, str, int, int], Predicted], seed: int) -> None:
        """Take the predictions of a classification's draws; ``seed`` is that of the bootstrap."""
        self.seed = seed
        self.draws: dict[tuple[str, str, int], list[Predicted]] = {}
        for (task, candidate, _, shots, _), own in sorted(
            found.items(), key=lambda item: item[0][4]
        ):
            if shots:
                self.draws.setdefault((task, candidate, shots), []).append(own)
        for task, _, shots in list(self.draws):
            anyone = next(v for (t, _, s), v in self.draws.items() if (t, s) == (task, shots))
            same = [replace(own, predicted=np.zeros_like(own.predicted[:1])) for own in anyone]
            self.draws.setdefault((task, CONSTANT, shots), same)
        self.drawn = {key: self._sums(own) for key, own in self.draws.items()}

    @staticmethod
    def _sums(draws: list[Predicted]) -> DrawnSums:
        parts = [(own.labels, own.predicted, own.groups) for own in draws]
        return drawn_recalls(parts, len(draws[0].task.classes))

    def estimates(self) -> list[dict[str, Any]]:
        """The mean over draws of every candidate with its interval."""
        rows = []
        for (task, candidate, shots), own in self.drawn.items():
            if candidate == CONSTANT:
                continue
            found = drawn_estimate(own, seed=self.seed, of=task)
            low, high = within(found.interval(), 0.0)
            rows.append(
                {
                    "task": task,
                    "candidate": candidate,
                    "method": f"{FEW_SHOT} {shots}",
                    "metric": PRIMARY["classification"],
                    "value": found.value,
                    "low": low,
                    "high": high,
                    "groups": found.groups,
                    "draws": len(own.sums),
                    "trainings": own.sums.shape[1],
                }
            )
        return rows

    def difference(self, task: str, first: str, second: str, method: str) -> Resampled | None:
        """Return the paired difference over draws; None where one has no predictions of them."""
        shots = int(method.removeprefix(FEW_SHOT))
        one, two = (task, first, shots), (task, second, shots)
        if one not in self.draws or two not in self.draws:
            return None
        if [own.images for own in self.draws[one]] != [own.images for own in self.draws[two]]:
            return None
        return drawn_difference(self.drawn[one], self.drawn[two], seed=self.seed, of=task)

    def several_trainings(self, task: str, first: str, second: str, method: str) -> bool:
        """Whether both were trained more than once, where they are models."""
        shots = int(method.removeprefix(FEW_SHOT))
        models = [name for name in (first, second) if name not in TRIVIAL]
        return all(self.drawn[task, name, shots].sums.shape[1] > 1 for name in models)

    def near_chance(self, candidate: str, task: str, method: str) -> bool:
        """Whether a candidate is not ahead of a constant answer, by the interval alone."""
        found = self.difference(task, candidate, CONSTANT, method)
        return found is None or found.interval()[0] <= 0


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
        "few_shot": summary.few_shot(pairs),
        "fine_tunings": fine_tunings(rows),
        "chance": {task.name: summary.chance(task.name) for task in tasks},
    }
