"""What the rows say: balanced accuracy with intervals, and the comparisons as families."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from evidence_held import beside, write_predictions
from evidence_rows import Row
from machine import describe_machine

from echostill.eval.datasets import LabelledDataset
from echostill.eval.statistics.bootstrap import (
    GroupSums,
    Resampled,
    difference,
    estimate,
    mean_of,
    recall_sums,
)
from echostill.eval.statistics.family import conclude

Seeds = dict[int, Row]
MEAN = "mean of tasks"
WIDEST = 30  # points to either side that the figure shows


def sums(rows: Seeds, seeds: list[int], task: LabelledDataset) -> GroupSums:
    """Sums of recalls of the trainings of an arm."""
    predicted = np.stack([rows[seed].predictions[task.name] for seed in seeds])
    assert task.labels is not None
    return recall_sums(task.labels, predicted, task.groups, len(task.class_names))


def compared(first: Seeds, second: Seeds, tasks: list[LabelledDataset]) -> Resampled:
    """Return the difference of two arms, the mean over tasks; pairs of trainings share a seed."""
    common = sorted(set(first) & set(second))
    pairs = min(len(first), len(second)) > 1
    own, other = (common, common) if pairs else (sorted(first), sorted(second))
    return mean_of(
        [
            difference(sums(first, own, task), sums(second, other, task), of=task.name)
            for task in tasks
        ]
    )


def arm_values(rows: dict[str, Seeds], tasks: list[LabelledDataset]) -> dict[str, Any]:
    """Return each arm's balanced accuracy by task, with intervals, and its mean facts."""
    found: dict[str, Any] = {}
    for arm, seeds in rows.items():
        each = [estimate(sums(seeds, sorted(seeds), task), of=task.name) for task in tasks]
        by_task = {task.name: _plain(value) for task, value in zip(tasks, each, strict=True)}
        names = sorted({name for row in seeds.values() for name in row.facts})
        facts = {
            name: float(np.mean([row.facts[name] for row in seeds.values() if name in row.facts]))
            for name in names
        }
        found[arm] = {"seeds": len(seeds), **by_task, MEAN: _plain(mean_of(each)), "facts": facts}
    return found


def primary(
    rows: dict[str, Seeds], named: list[list[str]], tasks: list[LabelledDataset]
) -> list[dict[str, Any]]:
    """Judge the comparisons of the plan together; those without rows are listed as missing."""
    there, missing = [], []
    for first, second, *only in named:
        chosen = [task for task in tasks if task.name in only] or tasks
        entry = {"first": first, "second": second, "of": only[0] if only else MEAN}
        absent = [arm for arm in (first, second) if arm not in rows]
        if absent:
            missing.append({**entry, "missing": absent})
            continue
        there.append((entry, compared(rows[first], rows[second], chosen)))
    concluded = conclude([found for _, found in there])
    return [
        {**entry, **asdict(said)} for (entry, _), said in zip(there, concluded, strict=True)
    ] + missing


def write_report(evidence: Any, units: dict[str, Any], held: Path | None = None) -> None:
    """Write predictions, evidence.json and a figure for each experiment; print the comparisons.

    Args:
        evidence: The measurement.
        units: Units by experiment.
        held: An evidence.json of rows that are gone, for what this one lacks.
    """
    tasks = evidence.tasks
    plan, out = evidence.plan, evidence.out
    before = json.loads(held.read_text())["experiments"] if held else {}
    result: dict[str, Any] = {"machine": describe_machine(), "plan": plan, "experiments": before}
    done = {name: evidence.rows.of(own) for name, own in units.items()}
    write_predictions(done, tasks, out)
    for name, rows in done.items():
        if not rows:
            continue
        section = plan["distillation" if name == "distillation" else "coreset"]
        chance = {task.name: 1 / len(task.class_names) for task in tasks}
        found = {
            "chance": {**chance, MEAN: float(np.mean(list(chance.values())))},
            "arms": arm_values(rows, tasks),
            "primary": primary(rows, section["primary"], tasks),
            "added": {
                name: primary(rows, named, tasks)
                for name, named in section.get("added", {}).items()
            },
        }
        if name in before:
            found = beside(found, before[name])
        result["experiments"][name] = found
        print(name)
        for entry in every(found):
            print(f"  {describe(entry)}")
        draw(name, found, [task.name for task in tasks], out / f"{name.replace(' ', '-')}.png")
    (out / "evidence.json").write_text(json.dumps(result, indent=1, default=str))


def every(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the comparisons of all families of an experiment."""
    return [*found["primary"], *(entry for each in found["added"].values() for entry in each)]


def describe(entry: dict[str, Any]) -> str:
    """Say what became of a comparison, in points of balanced accuracy."""
    pair = f"{entry['first']} - {entry['second']} ({entry['of']})"
    if "missing" in entry:
        return f"{pair}: no rows of {', '.join(entry['missing'])}"
    low, high = (100 * entry[key] for key in ("corrected_low", "corrected_high"))
    return f"{pair}: {100 * entry['value']:+.1f} [{low:+.1f}, {high:+.1f}] {entry['word']}"


def draw(name: str, found: dict[str, Any], tasks: list[str], path: Path) -> None:
    """Draw arms by task, and the paired differences with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = found["arms"]
    pairs = [entry for entry in every(found) if "value" in entry]
    columns = [*tasks, MEAN]
    height = 0.3 * max(len(arms), len(pairs)) + 1.4
    figure, axes = pyplot.subplots(
        1,
        len(columns) + 1,
        figsize=(2.6 * len(columns) + 8, height),
        width_ratios=[1] * len(columns) + [1.6],
        layout="constrained",
    )
    for axis, column in zip(axes, columns, strict=False):
        for place, values in enumerate(arms.values()):
            own = values[column]
            axis.plot([own["low"], own["high"]], [place, place], color="0.6", linewidth=2)
            axis.plot(own["value"], place, "o", color="black", markersize=4)
        axis.axvline(found["chance"][column], color="0.3", linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(arms)) if axis is axes[0] else [])
        axis.set_title(column, fontsize=10)
        if axis is axes[0]:
            axis.set_yticklabels(list(arms))
        axis.set_xlabel("balanced accuracy (dotted: chance)")
        axis.invert_yaxis()
    axis = axes[-1]
    for place, entry in enumerate(pairs):
        ends = [100 * entry[key] for key in ("corrected_low", "corrected_high")]
        axis.plot(ends, [place, place], color="0.6", linewidth=2)
        axis.plot(100 * entry["value"], place, "o", color="black", markersize=4)
    labels = [f"{entry['first']} - {entry['second']}\n({entry['of']})" for entry in pairs]
    axis.set_yticks(range(len(pairs)), labels, fontsize=7)
    axis.axvline(0, color="0.3", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_title("comparisons", fontsize=10)
    axis.set_xlabel("points, interval of the family")
    low, high = axis.get_xlim()  # two or three trainings have intervals that would hide the others
    axis.set_xlim(max(low, -WIDEST), min(high, WIDEST))
    figure.suptitle(name, fontsize=11)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _plain(value: Resampled) -> dict[str, float]:
    low, high = value.interval()
    return {"value": value.value, "low": low, "high": high}
