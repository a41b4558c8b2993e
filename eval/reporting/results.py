"""Results of an evaluation: values, intervals, and what a reader may conclude."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from echostill.eval.names import DISTILLED, FEW_SHOT, FINE_TUNED, LINEAR, METHODS, ROLES, TRIVIAL
from echostill.eval.predictions import not_converged
from echostill.eval.reporting.page import signed


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
        Metric("dice_gain", "Dice minus the constant mask's", True),
        Metric("hd95", "HD95, pixels", False, 1),
    ),
}


@dataclass(frozen=True)
class Cell:
    """One candidate's values of one metric, a value per training, or per draw of few groups."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of the values."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Standard deviation (n - 1); None with fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def text(self, metric: Metric) -> str:
        """Write the mean."""
        return f"{self.mean:.{metric.digits}f}"


class Results:
    """The evaluation's rows, looked up by candidate, task, method and metric."""

    def __init__(self, evaluation: dict[str, Any]) -> None:
        self.tasks: list[dict[str, Any]] = evaluation["tasks"]
        self.comparisons: list[dict[str, Any]] = evaluation["comparisons"]
        self.not_made: list[list[str]] = evaluation.get("not_made", [])
        self.chance: dict[str, float | None] = evaluation["chance"]
        self.costs: list[dict[str, Any]] = sorted(
            evaluation["candidates"], key=lambda cost: ROLES.index(cost["role"])
        )
        self.roles: dict[str, str] = {cost["label"]: cost["role"] for cost in self.costs}
        self.fine_tunings: list[dict[str, Any]] = evaluation.get("fine_tunings", [])
        self._rows: list[dict[str, Any]] = evaluation["results"]
        few = evaluation.get("few_shot", {})  # an earlier release had no intervals of these
        self.few_shot_comparisons: list[dict[str, Any]] = few.get("comparisons", [])
        self._estimates = {
            (row["candidate"], row["task"], row["method"]): row
            for row in [*evaluation["estimates"], *few.get("estimates", [])]
        }
        self._flags = {
            (row["candidate"], row["task"], row["method"]): row for row in evaluation["flags"]
        }

    @property
    def candidates(self) -> list[str]:
        """Labels: the teacher, distilled students, others, untrained, then the trivial ones."""
        return [*self.roles, *TRIVIAL]

    def methods(self, task: str) -> list[str]:
        """Methods a task was evaluated with; the constant's is none of its own."""
        used = {row["method"] for row in self._rows if row["task"] == task}
        return [method for method in METHODS if method in used]

    def shots(self, task: str) -> list[int]:
        """Numbers of groups per class of the few-shot classifiers."""
        named = {row["method"] for row in self._rows if row["task"] == task}
        return sorted(
            int(name.removeprefix(FEW_SHOT)) for name in named if name.startswith(f"{FEW_SHOT} ")
        )

    def method_of(self, candidate: str, task: str, method: str) -> str:
        """The method by which a candidate stands beside others; trivial ones have few."""
        if candidate in TRIVIAL and (candidate, task, method) not in self._estimates:
            return candidate if candidate == TRIVIAL[0] else LINEAR
        return method

    def cell(self, candidate: str, task: str, method: str, metric: str) -> Cell | None:
        """The values over trainings or draws, None where there are none or one is not finite."""
        method = method if method.startswith(FEW_SHOT) else self.method_of(candidate, task, method)
        found = tuple(
            float(row["metrics"][metric])
            for row in self._rows
            if (row["candidate"], row["task"], row["method"]) == (candidate, task, method)
            and isinstance(row["metrics"].get(metric), int | float)
        )
        return Cell(found) if found and np.isfinite(found).all() else None

    def interval(self, candidate: str, task: str, method: str) -> tuple[float, float] | None:
        """The 95% interval of a task's first metric."""
        method = method if method.startswith(FEW_SHOT) else self.method_of(candidate, task, method)
        row = self._estimates.get((candidate, task, method))
        return (row["low"], row["high"]) if row else None

    def flag(self, candidate: str, task: str, method: str) -> str:
        """What a candidate is not ahead of, in words; empty where it is ahead of both."""
        row = self._flags.get((candidate, task, method))
        return f"not ahead of the {row['against']}" if row and not row["ahead"] else ""

    def ended(self, candidate: str, task: str, method: str) -> str:
        """Which of a candidate's fine-tunings did not converge, in words; empty where all did."""
        if method != FINE_TUNED:
            return ""
        own = [e for e in self.fine_tunings if (e["candidate"], e["task"]) == (candidate, task)]
        return "; ".join(filter(None, map(not_converged, own)))

    def headline(self) -> str:
        """Say what a reader may conclude: of each planned comparison, and what limits it."""
        compared = self.comparisons
        if not compared:
            return (
                "No planned comparison could be made, so nothing is concluded about any candidate: "
                "the evaluation lacks one of each pair."
            )
        told = [row for row in compared if row["word"] != "not distinguished"]
        count = len(compared)
        pairs = dict.fromkeys((row["first"], row["word"], row["second"]) for row in told)
        listed = [self._said(told, *pair) for pair in pairs]
        if count > len(told):
            rest = f"in the other {count - len(told)}" if told else "none shows"
            difference = "no difference" if told else "a difference"
            listed.append(
                f"{rest} {difference} {'can' if told else 'that can'} be told from chance"
            )
        intervals = " (corrected intervals in brackets)" if told else ""
        number = f"Of {count} planned comparison{'s' if count > 1 else ''}"
        frozen = (
            "" if any(row["method"] == FINE_TUNED for row in compared) else " on frozen features"
        )
        sentences = [f"{number}{frozen}{intervals}: {'; '.join(listed)}."]
        few = [task["name"] for task in self.tasks if task.get("warnings")]
        if few:
            sentences.append(
                f"On {in_words(few)} too few groups are tested for any difference to be told from "
                "chance."
            )
        if self.not_made:
            sentences.append(f"{len(self.not_made)} more that were planned could not be made.")
        if any(entry["improving"] for entry in self.fine_tunings):
            sentences.append(
                "Some fine-tunings ended while they were still improving: what is said of them is "
                "of half-trained models."
            )
        near = list(dict.fromkeys(row["task"] for row in compared if row["near_chance"]))
        if near:
            sentences.append(
                f"On {in_words(near)} the better of a pair is not ahead of a constant answer, and "
                "no difference there counts."
            )
        for label, role in self.roles.items():
            names = [task["name"] for task in self.tasks if self.flag(label, task["name"], LINEAR)]
            if role == DISTILLED and names:
                sentences.append(
                    f"The {label} is not ahead of the trivial candidates on {in_words(names)}."
                )
        if not all(row["several_trainings"] for row in compared):
            sentences.append(
                "Where a model was trained once, this holds for these weights; another seed may "
                "give another result."
            )
        return " ".join(sentences)

    def _said(self, told: list[dict[str, Any]], first: str, word: str, second: str) -> str:
        """Say on which tasks one candidate is ahead of, or behind, another."""
        listed = []
        for row in told:
            if (row["first"], row["word"], row["second"]) == (first, word, second):
                metric = METRICS[self._kind(row["task"])][0]
                interval = f"{signed(row['corrected_low'], 3)}, {signed(row['corrected_high'], 3)}"
                by = (
                    f" by {row['method']}"
                    if len({r["method"] for r in self.comparisons}) > 1
                    else ""
                )
                value = f"{metric.in_text}{by} {signed(row['value'], 3)} [{interval}]"
                listed.append(f"{row['task']} ({value})")
        of = " of" if word == "ahead" else ""
        return f"the {first} is {word}{of} the {second} on {in_words(listed)}"

    def _kind(self, task: str) -> str:
        return next(str(entry["kind"]) for entry in self.tasks if entry["name"] == task)


def in_words(items: list[str]) -> str:
    """Join items as a sentence does: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
