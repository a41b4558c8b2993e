"""The report's sections on results, cost, defaults and how to do it again."""

import json
from collections.abc import Callable
from importlib import metadata
from typing import Any

from echostill.eval.reporting.data import Material, without_paths
from echostill.eval.reporting.labels import LABELS, TOPICS, LabelledValue, labelled_values
from echostill.eval.reporting.outcome import outcome
from echostill.eval.reporting.page import (
    Content,
    Html,
    Section,
    code,
    details,
    join,
    paragraph,
    table,
    text,
)
from echostill.eval.reporting.recipe import Recipe
from echostill.eval.reporting.results import Results
from echostill.eval.reporting.training import training
from echostill.platform.tables.fingerprint import code_version

PACKAGES = ("torch", "timm", "ray", "faiss-cpu", "pyarrow", "numpy", "scipy", "mlflow")


class ModelSections:
    """Sections 5 to 9, with the evaluation's results."""

    def __init__(self, material: Material, recipe: Recipe) -> None:
        self.material = material
        self.recipe = recipe
        self.results = Results(material.evaluation)

    def all(self) -> list[Section]:
        """Return the sections in order."""
        return [
            training(self.material),
            outcome(self.material, self.results),
            self.efficiency(),
            self.defaults(),
            self.reproduction(),
        ]

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
