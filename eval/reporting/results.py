"""Results over seeds: means, spreads, and what may honestly be said of two candidates."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Metric:
    """How a metric is written and read."""

    key: str
    label: str
    higher_is_better: bool
    digits: int = 3

    @property
    def heading(self) -> str:
        """The label with the direction that is better."""
        return f"{self.label} {'↑' if self.higher_is_better else '↓'}"

    @property
    def in_text(self) -> str:
        """The label inside a sentence; abbreviations and names stay as they are."""
        return self.label.lower() if self.key == "balanced_accuracy" else self.label

    @property
    def direction(self) -> str:
        """The direction that is better, in words."""
        return "higher is better" if self.higher_is_better else "lower is better"


# The first metric of a kind is the one a headline is about.
METRICS = {
    "classification": (
        Metric("balanced_accuracy", "Balanced accuracy", True),
        Metric("macro_f1", "Macro F1", True),
        Metric("auc", "AUC", True),
    ),
    "segmentation": (
        Metric("dice", "Dice", True),
        Metric("hd95", "HD95, pixels", False, 1),
    ),
}
METHODS = ("k-NN", "linear probe", "fine-tuned")
HEADLINE_METHODS = ("fine-tuned", "linear probe", "k-NN")


@dataclass(frozen=True)
class Cell:
    """One candidate's values of one metric, a value per seed."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None with fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def text(self, metric: Metric) -> str:
        """Write mean ± spread."""
        digits = metric.digits
        shown = f"{self.mean:.{digits}f}"
        return shown if self.spread is None else f"{shown} ± {self.spread:.{digits}f}"


@dataclass(frozen=True)
class Comparison:
    """Two candidates on one task, method and metric."""

    task: str
    method: str
    metric: Metric
    first: Cell
    second: Cell

    @property
    def gain(self) -> float:
        """By how much the first is better; negative where it is worse."""
        difference = self.first.mean - self.second.mean
        return difference if self.metric.higher_is_better else -difference

    @property
    def spread(self) -> float | None:
        """The larger of both spreads: a smaller difference may be the seeds' doing."""
        spreads = [c.spread for c in (self.first, self.second) if c.spread is not None]
        return max(spreads) if len(spreads) == 2 else None

    @property
    def verdict(self) -> str:
        """One of 'better', 'worse', 'within the spread', 'one seed'."""
        if self.spread is None:
            return "one seed"
        if abs(self.gain) <= self.spread:
            return "within the spread"
        return "better" if self.gain > 0 else "worse"


class Results:
    """The evaluation's rows, looked up by candidate, task, method and metric."""

    def __init__(self, evaluation: dict[str, Any], distilling_runs: frozenset[str]) -> None:
        self.tasks: list[dict[str, Any]] = evaluation["tasks"]
        self.seeds: list[int] = evaluation["seeds"]
        self.costs: list[dict[str, Any]] = evaluation["candidates"]
        self._rows: list[dict[str, Any]] = evaluation["results"]
        roles = {c["label"]: _role(c, distilling_runs) for c in self.costs}
        order = ["teacher", "distilled", "MIM-only", "untrained"]
        self.roles = dict(sorted(roles.items(), key=lambda item: order.index(item[1])))
        self.costs = sorted(self.costs, key=lambda c: list(self.roles).index(c["label"]))

    @property
    def candidates(self) -> list[str]:
        """Labels: the teacher, distilled students, others, untrained."""
        return list(self.roles)

    def with_role(self, role: str) -> str | None:
        """The first candidate with a role."""
        return next((label for label, own in self.roles.items() if own == role), None)

    def methods(self, task: str) -> list[str]:
        """Methods a task was evaluated with."""
        used = dict.fromkeys(row["method"] for row in self._rows if row["task"] == task)
        known = [method for method in METHODS if method in used]
        return known + [method for method in used if method not in METHODS]

    def cell(self, candidate: str, task: str, method: str, metric: str) -> Cell | None:
        """The values over seeds, None where there are none or one is not finite."""
        found = [
            (row["seed"], float(row["metrics"][metric]))
            for row in self._rows
            if (row["candidate"], row["task"], row["method"]) == (candidate, task, method)
            and isinstance(row["metrics"].get(metric), int | float)
        ]
        found.sort()
        if not found or not np.isfinite([value for _, value in found]).all():
            return None
        return Cell(tuple(s for s, _ in found), tuple(v for _, v in found))

    def compare(self, first: str, second: str, *, primary: bool = True) -> list[Comparison]:
        """Compare two candidates on every task and method, by each task's first metric or all."""
        compared = []
        for task in self.tasks:
            metrics = METRICS[task["kind"]]
            for method in self.methods(task["name"]):
                for metric in metrics[:1] if primary else metrics:
                    cells = [
                        self.cell(label, task["name"], method, metric.key)
                        for label in (first, second)
                    ]
                    if cells[0] and cells[1]:
                        compared.append(
                            Comparison(task["name"], method, metric, cells[0], cells[1])
                        )
        return compared

    def headline(self) -> str:
        """Say in plain words how the distilled student stands against the untrained one."""
        first, second = self.with_role("distilled"), self.with_role("untrained")
        if first is None or second is None:
            missing = "distilled" if first is None else "untrained"
            return f"No {missing} student was evaluated, so there is no headline comparison."
        compared = self.compare(first, second)
        method = next((m for m in HEADLINE_METHODS if any(c.method == m for c in compared)), None)
        if method is None:
            return f"The {first} and the {second} share no task, so there is no comparison."
        listed = [c for c in compared if c.method == method]
        sentence = f"{method[0].upper()}{method[1:]}, the {first} {_verdicts(listed, second)}."
        if len(compared) > len(listed):
            sentence += f" {tally(compared)}"
        if len(self.seeds) < 2:
            sentence += " With one seed no spread can be stated, and such differences may be noise."
        return sentence


def tally(compared: list[Comparison]) -> str:
    """Count the verdicts over all comparisons, in a sentence."""
    count = {
        name: sum(c.verdict == name for c in compared)
        for name in ("better", "within the spread", "worse", "one seed")
    }
    listed = ", ".join(f"{name} in {number}" for name, number in count.items() if number)
    return f"Over all {len(compared)} pairs of task and method: {listed}."


_PHRASES = {
    "better": "beats the {}",
    "within the spread": "stays within the spread of the {}",
    "worse": "falls behind the {}",
    "one seed": "stands beside the {}",
}


def _verdicts(compared: list[Comparison], second: str) -> str:
    """Say on which tasks the first is better, within the spread, or worse, with the values."""
    listed = []
    for verdict, phrase in _PHRASES.items():
        tasks = [
            f"{c.task} ({c.metric.in_text} {c.first.text(c.metric)} vs {c.second.text(c.metric)})"
            for c in compared
            if c.verdict == verdict
        ]
        if tasks:
            listed.append(f"{phrase.format(second)} on {in_words(tasks)}")
    return "; it ".join(listed)


def in_words(items: list[str]) -> str:
    """Join items as a sentence does: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _role(candidate: dict[str, Any], distilling_runs: frozenset[str]) -> str:
    """Tell a candidate's role from its runs, and from its label where it has none."""
    label = candidate["label"].lower()
    if candidate["runs"]:
        follows = distilling_runs.intersection(candidate["runs"]) or label.startswith("distil")
        return "distilled" if follows else "MIM-only"
    return "teacher" if "teacher" in label else "untrained"
