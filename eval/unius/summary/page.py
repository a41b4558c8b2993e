"""The benchmark's report: one HTML file that needs nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from echostill.eval.reporting.page import (
    Content,
    Html,
    KeyNumber,
    Section,
    figure,
    grid,
    header,
    heading,
    join,
    note,
    page,
    paragraph,
    signed,
    table,
)
from echostill.eval.statistics.bootstrap import Resampled
from echostill.eval.unius.summary import charts
from echostill.eval.unius.summary.results import (
    BenchResults,
    Difference,
    TaskResults,
    average_ranks,
    critical_difference,
)
from echostill.platform.tables.fingerprint import code_version

# Averages that the TinyUSFM paper states, of its own splits: (metric, what it calls it, value).
PUBLISHED = {
    "classification": ("accuracy", "accuracy", 84.91, 8),
    "segmentation": ("dice", "Dice", 85.78, 10),
}
LABELS = {
    "classification": "Balanced accuracy",
    "segmentation": "Dice",
    "detection": "Mean average precision",
}
MISSING = "–"
METHODS_SHOWN = ("k-NN", "linear probe", "fine-tuned")


def render(name: str, results: BenchResults) -> str:
    """Return the page; the same results always give the same text."""
    differences = results.differences()
    sections = [
        Section("tasks", "Sets and models", _tasks(results)),
        Section("averages", "Averages", _averages(results)),
        Section("differences", "Paired differences", _differences(differences)),
        Section("ranks", "Ranks over tasks", _ranks(results)),
        Section("efficiency", "Label efficiency", _label_efficiency(results)),
        Section("robustness", "Robustness", _robustness(results)),
        Section("calibration", "Calibration and classes", _calibration(results)),
        Section("distances", "Segmentation at native size", _native(results)),
        Section("costs", "Accuracy and cost", _costs(results)),
    ]
    title = f"UniUS-Bench: {name}"
    numbers = [
        KeyNumber(str(len({task.name for task in results.tasks})), "Tasks"),
        KeyNumber(str(len(results.candidates)), "Models"),
        KeyNumber(", ".join(results.protocols), "Protocols"),
    ]
    return page(title, header(title, _headline(differences), numbers), sections, code_version())


def _headline(differences: Sequence[Difference]) -> str:
    if not differences:
        return "Nothing is compared: a comparison needs the untrained student or the teacher."
    counts = dict.fromkeys(("ahead", "behind", "not distinguished"), 0)
    for one in differences:
        counts[one.conclusion.word] += 1
    return (
        f"Of {len(differences)} planned comparisons with the untrained student and the teacher, "
        f"{counts['ahead']} are ahead, {counts['behind']} behind and "
        f"{counts['not distinguished']} not distinguished (Holm, 5% for all together)."
    )


def _interval(found: Resampled) -> str:
    low, high = found.interval()
    return f"{found.value:.3f} [{low:.3f}, {high:.3f}]"


def _tasks(results: BenchResults) -> Html:
    pieces = []
    for protocol in results.protocols:
        for kind, label in LABELS.items():
            tasks = results.of(protocol, kind)
            if not tasks:
                continue
            rows = [[t.name, *(_cell(t, each) for each in results.candidates)] for t in tasks]
            method = tasks[0].method
            caption = (
                f"{label}, {protocol} protocol ({method}), with the 95% interval of groups and "
                "trainings. Splits are those of splits.json, not the paper's."
            )
            pieces.append(table(["Task", *results.candidates], rows, caption))
    if results.outdated:
        text = f"{results.outdated} rows of an earlier preparation of a set are left out."
        pieces.append(note(text, warning=True))
    return join(pieces)


def _cell(task: TaskResults, candidate: str) -> Content:
    if candidate in task.estimates:
        return _interval(task.estimates[candidate])
    value = task.mean(candidate, task.metric)
    return MISSING if value is None else f"{value:.3f}"


def _averages(results: BenchResults) -> Html:
    pieces = [
        note(
            "The paper's averages (84.91% accuracy, 85.78% Dice) are of other splits: the authors "
            "have not published theirs. They stand beside ours for scale, and are no comparison."
        )
    ]
    for protocol in results.protocols:
        rows: list[list[Content]] = []
        for kind, (metric, called, value, count) in PUBLISHED.items():
            tasks = results.of(protocol, kind)
            if tasks:
                own = [_percent(results.average(tasks, c, metric)) for c in results.candidates]
                about = f"{kind}: {called}, {len(tasks)} of {count} tasks"
                rows.append([about, *own, f"{value:.2f} (other splits)"])
        caption = f"Averages over tasks in per cent, {protocol} protocol."
        columns = ["Average", *results.candidates, "TinyUSFM paper"]
        pieces.append(table(columns, rows, caption))
        organs = sorted({organ for task in results.tasks for organ in task.organs})
        lines: list[list[Content]] = []
        for organ in organs:
            for kind, (metric, called, _, _) in PUBLISHED.items():
                tasks = [t for t in results.of(protocol, kind) if organ in t.organs]
                if tasks:
                    own = [_percent(results.average(tasks, c, metric)) for c in results.candidates]
                    lines.append([f"{organ} ({called})", *own])
        caption = f"Averages by organ in per cent, {protocol} protocol."
        pieces.append(table(["Organ", *results.candidates], lines, caption))
    return join(pieces)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.2f}"


def _differences(differences: Sequence[Difference]) -> Html:
    if not differences:
        return paragraph("There is nothing to compare.")
    pieces = []
    for reference in dict.fromkeys(one.reference for one in differences):
        own = [one for one in differences if one.reference == reference]
        rows = [
            [
                f"{one.task.name}, {one.task.protocol}",
                one.candidate,
                signed(one.conclusion.value, 3),
                f"[{signed(one.conclusion.low, 3)}, {signed(one.conclusion.high, 3)}]",
                f"{one.conclusion.adjusted:.3f}",
                one.conclusion.word,
            ]
            for one in own
        ]
        lines = [
            (
                f"{one.task.name}: {one.candidate}",
                one.conclusion.value,
                one.conclusion.corrected_low,
                one.conclusion.corrected_high,
            )
            for one in own[:40]
        ]
        drawing = charts.forest(lines, f"Against {reference}", "difference, corrected interval")
        caption = f"Differences to {reference} with intervals at the level that Holm tests them at."
        pieces.append(figure(drawing, f"forest-{reference}", caption))
        columns = ["Task", "Model", "Difference", "95% interval", "Holm's p", "Word"]
        words = frozenset({0, 1, 5})
        pieces.append(table(columns, rows, f"Paired differences to {reference}.", words=words))
    return join(pieces)


def _ranks(results: BenchResults) -> Html:
    pieces = []
    for protocol in results.protocols:
        tasks = [t for t in results.tasks if t.protocol == protocol and t.sums]
        names = [c for c in results.candidates if all(c in task.sums for task in tasks)]
        if len(tasks) < 2 or len(names) < 2:
            continue
        values = np.array([[task.estimates[name].value for name in names] for task in tasks])
        reach = critical_difference(len(names), len(tasks))
        drawing = charts.critical_differences(names, average_ranks(values), reach)
        caption = (
            f"Mean ranks of {len(names)} models over {len(tasks)} tasks, {protocol} protocol. "
            f"Models whose mean ranks differ by less than {reach:.2f} are not distinguished "
            "(Nemenyi, 5%): their bars overlap. Two tasks of one set are not independent."
        )
        pieces.append(figure(drawing, f"ranks-{protocol}", caption))
    return join(pieces) if pieces else paragraph("This needs two models on two tasks.")


def _label_efficiency(results: BenchResults) -> Html:
    pieces = []
    for protocol in results.protocols:
        for kind, label in LABELS.items():
            tasks = results.of(protocol, kind)
            lines = []
            for name in results.candidates if tasks and len(results.shares) > 1 else ():
                metric = tasks[0].metric
                values = [results.average(tasks, name, metric, share=s) for s in results.shares]
                known = [value for value in values if value is not None]
                if len(known) == len(results.shares):
                    lines.append((name, known))
            if lines:
                drawing = charts.over_shares(results.shares, lines, label)
                caption = f"Mean {label} over {len(tasks)} tasks, {protocol} protocol."
                pieces.append(figure(drawing, f"shares-{protocol}-{kind}", caption))
    few = [
        (method, task)
        for task in results.tasks
        for method in sorted(
            {o["method"] for pairs in task.rows.values() for o in pairs[0][0]["measured"]}
        )
        if method.startswith("few-shot")
    ]
    if few:
        rows = [
            [f"{task.name}, {method.removeprefix('few-shot ')} groups a class", *(
                _value(task.mean(c, task.metric, method)) for c in results.candidates)]
            for method, task in few
        ]  # fmt: skip
        caption = "Balanced accuracy of a linear probe on few groups of each class, mean of draws."
        pieces.append(table(["Task", *results.candidates], rows, caption))
    if not pieces:
        return paragraph("Measured with protocol.shares=[0.1, 0.2, 0.5, 1.0].")
    return join([grid(pieces[:-1]) if few else grid(pieces), *(pieces[-1:] if few else [])])


def _value(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _robustness(results: BenchResults) -> Html:
    if not results.conditions:
        return paragraph("Measured with protocol.corruptions=[speckle, gain, depth, shadow].")
    pieces = []
    for protocol in results.protocols:
        for kind, label in LABELS.items():
            tasks = results.of(protocol, kind)
            if not tasks:
                continue
            metric = tasks[0].metric
            rows: list[list[Content]] = []
            for condition in ("clean", *results.conditions):
                cells = [
                    _value(results.average(tasks, c, metric, condition=condition))
                    for c in results.candidates
                ]
                rows.append([condition, *cells])
            caption = (
                f"Mean {label} over {len(tasks)} tasks on changed images, {protocol} protocol."
            )
            pieces.append(table(["Test images", *results.candidates], rows, caption))
    pieces.append(
        paragraph("A shift between devices is not measured: prepared sets do not name devices yet.")
    )
    return join(pieces)


def _calibration(results: BenchResults) -> Html:
    pieces = []
    tasks = [task for task in results.tasks if task.kind == "classification"]
    for metric, label in (
        ("calibration_error", "Expected calibration error (15 bins), lower is better"),
        ("auc", "AUC, one against the rest"),
        ("macro_f1", "Macro F1"),
    ):
        rows = [
            [f"{t.name}, {t.protocol}", *(_value(t.mean(c, metric)) for c in results.candidates)]
            for t in tasks
        ]
        if rows:
            pieces.append(table(["Task", *results.candidates], rows, f"{label}."))
    lines: list[list[Content]] = []
    for task in results.tasks:
        first = next(iter(task.rows.values()))[0][0]
        key = "recall" if task.kind == "classification" else task.metric
        for name in first["classes"]:
            cells = [_value(task.mean(c, f"{key} {name}")) for c in results.candidates]
            if set(cells) != {MISSING}:
                lines.append([f"{task.name}, {task.protocol}: {name}", *cells])
    if lines:
        pieces.append(heading("By class"))
        caption = "Recall of each class, Dice of each structure."
        pieces.append(table(["Class", *results.candidates], lines, caption))
    return join(pieces) if pieces else paragraph("There is no classification task.")


def _native(results: BenchResults) -> Html:
    tasks = [task for task in results.tasks if task.kind == "segmentation"]
    if not tasks:
        return paragraph("There is no segmentation task.")
    rows = [
        [
            f"{task.name}, {task.protocol}",
            candidate,
            *(
                _digits(task.mean(candidate, key), digits)
                for key, digits in (
                    ("dice", 3),
                    ("dice_native", 3),
                    ("hd95", 1),
                    ("hd95_native", 1),
                    ("hd95_mm", 2),
                )
            ),
        ]
        for task in tasks
        for candidate in task.rows
    ]
    columns = ["Task", "Model", "Dice", "Dice, native", "HD95, px", "HD95 native, px", "HD95, mm"]
    caption = (
        "Dice and HD95 at the input's size, as published, and at each image's own size; "
        "millimetres where the spacing of pixels is known."
    )
    return table(columns, rows, caption, words=frozenset({0, 1}))


def _digits(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def _costs(results: BenchResults) -> Html:
    rows: list[list[Content]] = []
    for name in results.candidates:
        cost: dict[str, Any] = results.costs.get(name, {})
        cells = (_digits(cost.get(key), d) for key, d in (("gflops", 3), ("latency_ms", 2)))
        rows.append(
            [name, cost.get("parameters", MISSING), *cells, cost.get("image_size", MISSING)]
        )
    columns = ["Model", "Parameters", "GFLOPs", "Latency, ms", "Input, px"]
    device = next((cost["device"] for cost in results.costs.values() if "device" in cost), "")
    caption = f"Cost of an encoder without its head, one image in float32 on {device or 'a CPU'}."
    pieces = [table(columns, rows, caption)]
    drawings = []
    for protocol in results.protocols:
        for kind, label in LABELS.items():
            tasks = results.of(protocol, kind)
            for key, cost_name in (("gflops", "GFLOPs"), ("latency_ms", "latency in ms")):
                points = [
                    (name, float(results.costs[name][key]), value)
                    for name in results.candidates
                    if key in results.costs.get(name, {})
                    and tasks
                    and (value := results.average(tasks, name, tasks[0].metric)) is not None
                ]
                if len(points) > 1:
                    drawing = charts.against_cost(points, cost_name, label)
                    text = f"Mean {label} over {len(tasks)} tasks, {protocol} protocol."
                    drawings.append(figure(drawing, f"{key}-{protocol}-{kind}", text))
    return join([*pieces, *([grid(drawings)] if drawings else [])])
