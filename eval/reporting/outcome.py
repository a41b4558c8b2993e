"""The report's section on results: every task, candidate and method, then the comparisons."""

from typing import Any

from echostill.eval.names import FEW_SHOT, TRIVIAL
from echostill.eval.predictions import unfinished
from echostill.eval.reporting import figures as draw
from echostill.eval.reporting.data import Material, without_paths
from echostill.eval.reporting.page import (
    Content,
    Html,
    Section,
    figure,
    grid,
    heading,
    join,
    note,
    paragraph,
    signed,
    table,
)
from echostill.eval.reporting.results import METRICS, Metric, Results

LISTED = 12  # odd images that are named


def outcome(material: Material, results: Results) -> Section:
    """Every task with its charts and tables, then the planned comparisons."""
    content = [paragraph(_protocol(material.evaluation))]
    for index, task in enumerate(results.tasks):
        content += _task(results, task, f"task{index}")
    content.append(heading("The planned comparisons"))
    content += _comparisons(results)
    return Section("results", "Results", join(content))


def _protocol(evaluation: dict[str, Any]) -> str:
    return (
        f"Each image is predicted by a model that never saw its group ({evaluation['folds']} folds "
        "by group, the same for every candidate; an official split where a set has one). "
        "Intervals are 95%, from draws of groups with replacement; where a model was trained "
        "several times, the spread between trainings is in them. The constant candidate gives "
        "every image the same answer, and the thumbnail knows 8 x 8 grey levels: a model that is "
        "not ahead of them has shown nothing on that task. All predictions are in the table "
        "predictions of the store."
    )


def _task(results: Results, task: dict[str, Any], name: str) -> list[Html]:
    metrics = METRICS[task["kind"]]
    classes = ", ".join(str(label) for label in task.get("classes", []))
    chance = results.chance.get(task["name"])
    summary = (
        f"{task['images']:,} images of {task['groups']:,} groups, {task['tested']:,} of them "
        f"tested ({task['protocol']}); classes: {classes}."
    )
    if chance is not None:
        what = "the constant mask's" if task["kind"] == "segmentation" else "one class for all has"
        summary += f" Chance level: {metrics[0].in_text} {chance:.3f}, which {what}."
        summary = summary.replace("which the constant mask's", "which is the constant mask's")
    content = [heading(f"{task['name']}: {task['kind']}"), paragraph(summary)]
    content += [note(text, warning=True) for text in task.get("warnings", [])]
    content += [note(without_paths(remark)) for remark in _remarks(task)]
    own = [ended for ended in results.fine_tunings if ended["task"] == task["name"]]
    content += [note(text, warning=True) for text in unfinished(own)]
    drawn = _dots(results, task["name"], metrics[0], name, chance)
    content += [grid([drawn])] if drawn is not None else []
    content.append(_result_table(results, task, metrics))
    if results.shots(task["name"]):
        content.append(_few_shot_table(results, task, metrics[0]))
    return content


def _remarks(task: dict[str, Any]) -> list[str]:
    """Notes of the evaluation, and the odd images by name."""
    said = list(task.get("notes", []))
    same = [remark for remark in task.get("remarks", []) if remark["kind"] == "identical"]
    said += [f"Identical pictures: {', '.join(remark['files'])}" for remark in same[:LISTED]]
    return said


def _dots(
    results: Results, task: str, metric: Metric, name: str, chance: float | None
) -> Html | None:
    groups = []
    for method in results.methods(task):
        members = []
        for label in results.candidates:
            cell = results.cell(label, task, method, metric.key)
            interval = results.interval(label, task, method)
            if cell is not None and interval is not None:
                emphasised = results.roles.get(label) == "distilled"
                members.append(draw.DotRow(label, cell.values, emphasised, interval))
        if members:
            groups.append((method, members))
    if not groups:
        return None
    caption = (
        f"{metric.label} on {task}: {metric.direction}. Rings are trainings, the diamond their "
        "mean, the line its 95% interval; the dashed line is the chance level."
    )
    drawn = draw.dots(groups, metric.heading, metric.direction, chance)
    return figure(drawn, f"{name}-{metric.key}".replace("_", "-"), caption)


def _result_table(results: Results, task: dict[str, Any], metrics: tuple[Metric, ...]) -> Html:
    name = task["name"]
    recalls = [
        Metric(f"recall {label}", f"Recall {label}", True)
        for label in (task["classes"] if task["kind"] == "classification" else [])
    ]
    shown = [*metrics, *recalls]
    rows: list[list[Content]] = []
    for method in results.methods(name):
        for label in results.candidates:
            cells = [results.cell(label, name, method, metric.key) for metric in shown]
            interval = results.interval(label, name, method)
            if cells[0] is None or interval is None:
                continue
            if label in TRIVIAL and results.method_of(label, name, method) not in (method, label):
                continue  # the thumbnail stands once, beside the method that it was used with
            written = [
                cell.text(metric) if cell is not None else "–"
                for cell, metric in zip(cells, shown, strict=True)
            ]
            written[0] += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
            flags = [results.flag(label, name, method), results.ended(label, name, method)]
            flag = "trivial" if label in TRIVIAL else "; ".join(filter(None, flags))
            rows.append([label, method, *written, flag])
    headings = ["Candidate", "Method", *(metric.heading for metric in shown), "Flag"]
    chance = results.chance.get(name)
    level = f" Chance level of the first: {chance:.3f}." if chance is not None else ""
    caption = (
        f"{name}: ↑ higher is better, ↓ lower is better; means over trainings, the first with its "
        f"95% interval.{level} A flag says that the paired interval against the better trivial "
        "candidate (the thumbnail by its linear probe where it has no other) is not above 0."
    )
    return table(headings, rows, caption, words=frozenset({0, 1, len(headings) - 1}))


def _few_shot_table(results: Results, task: dict[str, Any], metric: Metric) -> Html:
    name, shots = task["name"], results.shots(task["name"])
    rows: list[list[Content]] = []
    for label in results.candidates:
        cells = [_few_shot_cell(results, label, name, count, metric) for count in shots]
        if any(cells):
            rows.append([label, *(cell or "–" for cell in cells)])
    headings = ["Candidate", *(f"{count} groups per class" for count in shots)]
    chance = results.chance.get(name)
    level = f" Chance level: {chance:.3f}." if chance is not None else ""
    caption = (
        f"{name}, few-shot: {metric.in_text} of a linear probe trained on so many groups of each "
        "class and tested on all others, mean ± standard deviation over draws (and trainings), the "
        "same draws for every candidate; in brackets the 95% interval of the mean, over groups, "
        f"draws and trainings.{level}"
    )
    return table(headings, rows, caption)


def _few_shot_cell(
    results: Results, label: str, task: str, shots: int, metric: Metric
) -> str | None:
    method = f"{FEW_SHOT} {shots}"
    cell = results.cell(label, task, method, metric.key)
    if cell is None:
        return None
    interval = results.interval(label, task, method)
    ends = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return f"{cell.mean:.3f} ± {cell.spread or 0:.3f}{ends}"


def _comparisons(results: Results) -> list[Html]:
    compared = results.comparisons
    lacking = [f"{task}: {first} − {second}, {method}"
               for task, first, second, method in results.not_made]  # fmt: skip
    not_made = [
        note(f"Planned, and not made, since one of the pair has no predictions by this method: "
             f"{'; '.join(lacking)}.")
    ] if lacking else []  # fmt: skip
    if not compared:
        return [paragraph("None could be made: one of each pair was not evaluated."), *not_made]
    groups: dict[str, list[draw.DotRow]] = {}
    for row in compared:
        label = f"{row['first']} − {row['second']}"
        told = row["word"] != "not distinguished"
        interval = (row["corrected_low"], row["corrected_high"])
        groups.setdefault(f"{row['task']}, {_level(results, row['task'])}", []).append(
            draw.DotRow(label, (row["value"],), told, interval)
        )
    drawn = draw.dots(list(groups.items()), "Paired differences", "first minus second", 0.0)
    caption = (
        f"All {len(compared)} comparisons that the configuration names, by each task's first "
        "metric. On a task where the better of a pair is not ahead of a constant "
        "answer, nothing is called ahead or behind."
    )
    return [
        paragraph(
            "Candidates are tested on the same images, so their difference is drawn over the same "
            "groups. The comparisons are one family: with Holm's correction, the probability that "
            "any of them gets a word without a true difference is at most 5%. A difference is "
            "called ahead or behind only where its corrected interval excludes 0."
        ),
        figure(
            drawn,
            "differences",
            "Paired differences with their corrected intervals; the dashed line is no difference. "
            "Accent: ahead or behind.",
        ),
        _compared_table(results, compared, caption),
        *not_made,
        *_few_shot_comparisons(results),
    ]


def _few_shot_comparisons(results: Results) -> list[Html]:
    compared = results.few_shot_comparisons
    if not compared:
        return []
    caption = (
        f"The same pairs with few labels: {len(compared)} comparisons of few-shot classifiers on "
        "the same draws, means over them. They are a second family, with 5% of its own."
    )
    return [_compared_table(results, compared, caption)]


def _compared_table(results: Results, compared: list[dict[str, Any]], caption: str) -> Html:
    rows = [
        (
            row["task"],
            f"{row['first']} − {row['second']}",
            row["method"],
            signed(row["value"], 3),
            f"[{signed(row['low'], 3)}, {signed(row['high'], 3)}]",
            f"[{signed(row['corrected_low'], 3)}, {signed(row['corrected_high'], 3)}]",
            f"{row['adjusted']:.3f}",
            _level(results, row["task"]).removeprefix("chance level "),
            row["word"] + (", near chance" if row["near_chance"] else ""),
        )
        for row in compared
    ]
    headings = [
        "Task", "Pair", "Method", "Difference", "95% interval", "Corrected interval",
        "Holm's p", "Chance level", "The first is",
    ]  # fmt: skip
    return table(headings, rows, caption, words=frozenset({0, 1, 2, 8}))


def _level(results: Results, task: str) -> str:
    chance = results.chance.get(task)
    return "chance level –" if chance is None else f"chance level {chance:.3f}"
