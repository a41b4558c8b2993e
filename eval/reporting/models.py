"""The report's sections on results, cost, defaults and how to do it again."""

import json
from collections.abc import Callable
from importlib import metadata
from typing import Any

from echostill.eval.reporting import figures as draw
from echostill.eval.reporting.data import Material, without_paths
from echostill.eval.reporting.labels import LABELS, TOPICS, LabelledValue, labelled_values
from echostill.eval.reporting.page import (
    Content,
    Html,
    Section,
    code,
    details,
    figure,
    grid,
    heading,
    join,
    paragraph,
    signed,
    table,
    text,
)
from echostill.eval.reporting.recipe import Recipe
from echostill.eval.reporting.results import METRICS, Cell, Metric, Results, tally
from echostill.eval.reporting.training import training
from echostill.platform.tables.fingerprint import code_version

PACKAGES = ("torch", "timm", "ray", "faiss-cpu", "pyarrow", "numpy", "scipy", "mlflow")


class ModelSections:
    """Sections 5 to 9, with the evaluation's results."""

    def __init__(self, material: Material, recipe: Recipe) -> None:
        self.material = material
        self.recipe = recipe
        distilling = frozenset(run.name for run in material.runs if run.distils)
        self.results = Results(material.evaluation, distilling)

    def all(self) -> list[Section]:
        """Return the sections in order."""
        return [
            training(self.material),
            self.outcome(),
            self.efficiency(),
            self.defaults(),
            self.reproduction(),
        ]

    def outcome(self) -> Section:
        """Every task, method and candidate: dots and tables, then the comparisons."""
        results = self.results
        content = [paragraph(self._protocol())]
        for index, task in enumerate(results.tasks):
            metrics = METRICS[task["kind"]]
            content.append(heading(f"{task['name']}: {task['kind']}"))
            classes = ", ".join(str(name) for name in task.get("classes", []))
            summary = f"{task['images']:,} images of {task['groups']:,} groups; classes: {classes}."
            for remark in task.get("notes", []):
                summary += f" {without_paths(remark)}"
            content.append(paragraph(summary))
            drawn = [
                self._dots(task["name"], metric, f"task{index}")
                for metric in (metrics[0], metrics[-1])
            ]
            content.append(grid([d for d in drawn if d is not None]))
            content.append(self._result_table(task["name"], metrics))
        content.append(heading("The distilled student against the others"))
        content += self._comparisons()
        return Section("results", "Results", join(content))

    def efficiency(self) -> Section:
        """What each model costs, and its ratio to the teacher."""
        results = self.results
        by_model: dict[str, dict[str, Any]] = {}
        labels: dict[str, list[str]] = {}
        for cost in results.costs:
            by_model.setdefault(cost["model"], cost)
            labels.setdefault(cost["model"], []).append(cost["label"])
        reference = next((c for c in results.costs if results.roles[c["label"]] == "teacher"), None)
        rows = [_cost_line(cost, labels[model]) for model, cost in by_model.items()]
        headings = ["Model", "Candidates", "Parameters", "GFLOPs, paper", "GFLOPs, all",
                    "Latency, ms", "Images/s"]  # fmt: skip
        threads = sorted({str(cost.get("threads", "?")) for cost in by_model.values()})
        where = sorted({str(cost["device"]) for cost in by_model.values() if cost.get("device")})
        place = f" on {', '.join(where)}" if where else ""
        content = [
            table(
                headings,
                rows,
                "Models without a head. GFLOPs are twice the multiply-adds; the paper counts them "
                "without the attention products. Latency is of one image, images/s in batches, in "
                f"float32 with {', '.join(threads)} thread(s){place}.",
                words=frozenset({0, 1}),
            )
        ]
        ratios = [
            _ratio_line(model, cost, reference)
            for model, cost in by_model.items()
            if reference is not None and model != reference["model"]
        ]
        if reference is not None and ratios:
            content.append(
                table(
                    ["Model", "Parameters", "GFLOPs, paper", "GFLOPs, all", "Latency", "Images/s"],
                    ratios,
                    f"Ratio to the teacher, {reference['model']}.",
                )
            )
        return Section("efficiency", "Efficiency", join(content))

    def defaults(self) -> Section:
        """Each default with its label, its reason and the value used."""
        material = self.material
        run = next((r for r in material.runs if r.distils), None) or next(iter(material.runs), None)
        values = labelled_values(
            material.configurations.get("score", {}),
            material.configurations.get("select", {}),
            run.configuration if run else {},
        )
        other = sum(item.differs for item in values)
        inferred = sum(item.default.label == "I" for item in values)
        of_run = f" Training's values are those of {run.name}." if run else ""
        content = [
            paragraph(
                "The paper's formulas and numbers are public only in part. "
                f"{len(values) - inferred} of these {len(values)} choices are confirmed by a "
                f"public source [C]; {inferred} are inferred [I] and stay configurable: never "
                "read them as what the paper says. A label belongs to the default. Here "
                f"{other} differ from their default, which then stands below.{of_run}"
            ),
            *(_default_table(topic, values) for topic in TOPICS),
        ]
        return Section("defaults", "Defaults and their labels", join(content))

    def reproduction(self) -> Section:
        """Commands, digests, versions, configurations."""
        material = self.material
        commands = "\n".join(["STORE=...  # this store", *self.recipe.commands])
        digests = [(name, _hash(digest)) for name, digest in material.digests.items()]
        versions = [("echostill", code_version()), *_versions()]
        content = [
            paragraph(
                "The same inputs, configuration and seed give the same coreset byte for byte. "
                f"{', '.join(self.recipe.files)} beside this report holds every key of every stage "
                "as it was resolved, and a new place for the store. Run the commands in the "
                "folder that relative paths refer to. Each continues where it stopped."
            ),
            *(paragraph(text) for text in self.recipe.notes),
            code(commands),
            table(["Input", "SHA-256"], digests, "Digests of what this report was made from.",
                  words=frozenset({0, 1})),
            table(["Package", "Version"], versions, "Versions that made this report.",
                  words=frozenset({0, 1})),
        ]  # fmt: skip
        for stage, values in material.configurations.items():
            shown = json.dumps(without_paths(values), indent=1, sort_keys=True)
            content.append(details(f"Resolved configuration: {stage}", code(shown)))
        return Section("reproduce", "Reproduce", join(content))

    def _protocol(self) -> str:
        results, evaluation = self.results, self.material.evaluation
        seeds = len(results.seeds)
        share = evaluation.get("test_share")
        tested = f", {share:.0%} of the groups for testing" if share else ""
        spread = (
            f"Mean ± standard deviation over {seeds} seeds; a seed draws the split and the head."
            if seeds > 1
            else "One seed, so no spread."
        )
        trained = {c["label"]: len(c["runs"]) for c in results.costs if c["runs"]}
        fewer = [label for label, number in trained.items() if number < seeds]
        limit = (
            f" The spread does not cover the training itself where a student was trained fewer "
            f"times than that ({', '.join(fewer)})."
            if fewer and seeds > 1
            else ""
        )
        return (
            f"Splits by group{tested}, the same for every candidate. Fine-tuning takes "
            f"{evaluation['finetune_steps']} steps for all. {spread}{limit} Budgets this small "
            "say which way things point, not how good a method can be."
        )

    def _dots(self, task: str, metric: Metric, name: str) -> Html | None:
        groups = []
        for method in self.results.methods(task):
            members = []
            for label in self.results.candidates:
                cell = self.results.cell(label, task, method, metric.key)
                if cell is not None:
                    emphasised = self.results.roles[label] == "distilled"
                    members.append(draw.DotRow(label, cell.values, emphasised))
            if members:
                groups.append((method, members))
        if not groups:
            return None
        caption = (
            f"{metric.label} on {task}: {metric.direction}. Rings are seeds, the diamond their "
            "mean, the line one standard deviation each way. Numbers stand in the table."
        )
        drawn = draw.dots(groups, metric.heading, metric.direction)
        return figure(drawn, f"{name}-{metric.key}".replace("_", "-"), caption)

    def _result_table(self, task: str, metrics: tuple[Metric, ...]) -> Html:
        rows: list[list[Content]] = []
        for method in self.results.methods(task):
            cells: dict[str, list[Cell | None]] = {
                label: [self.results.cell(label, task, method, m.key) for m in metrics]
                for label in self.results.candidates
            }
            best = [_best([own[i] for own in cells.values()], m) for i, m in enumerate(metrics)]
            for label, own in cells.items():
                if any(own):
                    written = [
                        _written(c, m, b) for c, m, b in zip(own, metrics, best, strict=True)
                    ]
                    rows.append([label, method, *written])
        headings = ["Candidate", "Method", *(metric.heading for metric in metrics)]
        caption = f"{task}: ↑ higher is better, ↓ lower is better. Bold is the best mean, no test."
        return table(headings, rows, caption, words=frozenset({0, 1}))

    def _comparisons(self) -> list[Html]:
        results = self.results
        first = results.with_role("distilled")
        if first is None:
            return [paragraph("No distilled student was evaluated.")]
        pieces = [
            paragraph(
                "A difference counts as better or worse only where it exceeds the larger of both "
                "standard deviations over seeds. That is a rule of thumb, not a test."
            )
        ]
        for second in results.candidates:
            compared = results.compare(first, second) if second != first else []
            if not compared:
                continue
            rows = [
                (c.task, c.method, c.metric.heading, c.first.text(c.metric),
                 c.second.text(c.metric), signed(c.first.mean - c.second.mean, 3), c.verdict)
                for c in compared
            ]  # fmt: skip
            headings = ["Task", "Method", "Metric", first, second, "Difference", f"{first} is"]
            caption = f"{first} against {second}. {tally(compared)}"
            pieces.append(table(headings, rows, caption, words=frozenset({0, 1, 2, 6})))
        return pieces


def _best(cells: list[Cell | None], metric: Metric) -> float | None:
    means = [cell.mean for cell in cells if cell is not None]
    if not means:
        return None
    return max(means) if metric.higher_is_better else min(means)


def _written(cell: Cell | None, metric: Metric, best: float | None) -> Content:
    if cell is None:
        return "–"
    written = text(cell.text(metric))
    return Html(f'<span class="best">{written}</span>') if cell.mean == best else Html(written)


def _cost_line(cost: dict[str, Any], labels: list[str]) -> list[Content]:
    return [
        cost["model"],
        ", ".join(labels),
        int(cost["parameters"]),
        f"{cost['gflops_paper']:.3g}",
        f"{cost['gflops']:.3g}",
        f"{cost['latency_ms']:.1f}",
        f"{cost['images_per_second']:,.0f}",
    ]


def _ratio_line(model: str, cost: dict[str, Any], reference: dict[str, Any]) -> list[Content]:
    keys: list[tuple[str, Callable[[float], str]]] = [
        ("parameters", lambda ratio: f"{ratio:.2%}"),
        ("gflops_paper", lambda ratio: f"{ratio:.2%}"),
        ("gflops", lambda ratio: f"{ratio:.2%}"),
        ("latency_ms", lambda ratio: f"{ratio:.2f} ×"),
        ("images_per_second", lambda ratio: f"{ratio:.2f} ×"),
    ]
    return [
        model,
        *(write(cost[key] / reference[key]) if reference[key] else "–" for key, write in keys),
    ]


def _label(label: Any) -> Html:
    word = LABELS[label]
    return Html(f'<span class="label {word}" title="{word}">{label}</span>')


def _default_table(topic: str, values: list[LabelledValue]) -> Html:
    rows = [
        (item.default.name, _label(item.default.label), _used(item), item.default.reason)
        for item in values
        if item.default.topic == topic
    ]
    headings = ["Choice", "Label", "Used here", "What the default stands on"]
    return table(headings, rows, topic, words=frozenset(range(4)), kind="defaults")


def _used(item: LabelledValue) -> Html:
    """The value used, and the default beneath it where that is another."""
    used = text(str(without_paths(item.value)))
    if not item.differs:
        return Html(used)
    return Html(f"<strong>{used}</strong><small>default {text(item.default.value)}</small>")


def _hash(digest: str) -> Html:
    return Html(f'<span class="hash">{text(digest)}</span>')


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found
