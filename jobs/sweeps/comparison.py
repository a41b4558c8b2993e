"""A sweep's results: one table, ranked, and one page that needs nothing but itself."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from echostill.eval.names import CONSTANT, LINEAR, TRIVIAL
from echostill.eval.reporting import figures as draw
from echostill.eval.reporting.page import (
    Content,
    Html,
    KeyNumber,
    Section,
    figure,
    grid,
    header,
    join,
    note,
    page,
    table,
)
from echostill.jobs.sweeps.grid import Trial
from echostill.jobs.sweeps.settings import SweepConfig
from echostill.jobs.sweeps.trivial import Trivial

LOSS = "final loss"
METRICS = {"classification": "balanced accuracy", "segmentation": "Dice"}
DRAWN = 12  # most curves a panel can show apart


def compare(
    trials: Sequence[Trial],
    rows: Mapping[str, dict[str, Any]],
    failures: Mapping[str, str],
    config: SweepConfig,
    trivial: Trivial | None = None,
) -> dict[str, Any]:
    """Put trials, the rows of their runs, and what needs no model together.

    Trials are ranked by the mean over runs and probe seeds of the first probe's metric (the
    largest first), or by the final loss where nothing was probed (the smallest first). A loss is
    comparable only where the objective is the same; the page says so.
    """
    lines: list[dict[str, Any]] = []
    for trial in trials:
        own = [rows[run.name] for run in trial.runs if run.name in rows]
        probes: dict[str, list[float]] = {}
        for row in own:
            for method, values in row["probe"].items():
                probes.setdefault(method, []).extend(values)
        lines.append(
            {
                "trial": trial.digest,
                "label": trial.label,
                "assignment": trial.assignment,
                "runs": [run.name for run in trial.runs],
                "failed": {
                    run.name: failures[run.name] for run in trial.runs if run.name in failures
                },
                "loss": _summary([row["loss_last"] for row in own]),
                "weight_spread": _summary(
                    [row["weight_spread"] for row in own if row["weight_spread"] is not None]
                ),
                "probes": {method: _summary(values) for method, values in probes.items()},
            }
        )
    methods = list(dict.fromkeys(method for line in lines for method in line["probes"]))
    ranked_by = methods[0] if methods else LOSS
    scored = [(value, line) for line in lines if (value := _score(line, ranked_by)) is not None]
    # Ties break by the trial's digest, so that the table is the same every time.
    scored.sort(key=lambda pair: (pair[0] if ranked_by == LOSS else -pair[0], pair[1]["trial"]))
    best = scored[0] if scored else None
    return {
        "sweep": config.name,
        "grid": {key: list(values) for key, values in config.grid.items()},
        "task": config.task.name if config.task else None,
        "metric": None if config.task is None else METRICS[config.task.kind],
        "ranked_by": ranked_by,
        "best": None if best is None else {"trial": best[1]["trial"], "value": best[0]},
        "methods": methods,
        "trivial": {
            candidate: {method: _summary(values) for method, values in own.items()}
            for candidate, own in (trivial or {}).items()
        },
        "trials": [line for _, line in scored]
        + [line for line in lines if _score(line, ranked_by) is None],
        "rows": [rows[run.name] for trial in trials for run in trial.runs if run.name in rows],
    }


def render(compared: Mapping[str, Any], version: str) -> str:
    """Return the page; the same results always give the same text."""
    trials = compared["trials"]
    best = next(
        (t for t in trials if compared["best"] and t["trial"] == compared["best"]["trial"]), None
    )
    said = f"Best by {compared['ranked_by']}: {best['label']}." if best else "No run finished."
    for name in TRIVIAL if best else ():
        value = _trivial(compared, name, compared["ranked_by"])
        if value is not None and compared["best"]["value"] <= value["mean"]:
            said += f" It is not ahead of the {name} ({value['mean']:.3f})."
    runs = sum(len(trial["runs"]) for trial in trials)
    failed = sum(len(trial["failed"]) for trial in trials)
    numbers = [
        KeyNumber(str(len(trials)), "Combinations", ", ".join(compared["grid"])),
        KeyNumber(str(runs), "Runs", f"{failed} failed" if failed else ""),
    ]
    if compared["best"]:
        numbers.append(KeyNumber(f"{compared['best']['value']:.4f}", "Best", compared["ranked_by"]))
    top = header(f"Sweep: {compared['sweep']}", said, numbers)
    drawn = [_losses(compared)]
    if any(trial["probes"] for trial in trials):
        drawn.insert(0, _probes(compared))
    sections = [
        Section("comparison", "Comparison", _comparison(compared)),
        Section("figures", "Figures", grid(drawn)),
    ]
    return page(f"Sweep {compared['sweep']}", top, sections, version)


def _comparison(compared: Mapping[str, Any]) -> Html:
    keys, methods = list(compared["grid"]), compared["methods"]
    lines: list[list[Content]] = []
    for trial in compared["trials"]:
        settings: list[Content] = [json.dumps(trial["assignment"][key]) for key in keys]
        measured: list[Content] = [
            _written(trial["probes"].get(method), percent=True) for method in methods
        ]
        lines.append(
            [trial["trial"], *settings, *measured, _written(trial["loss"]),
             _written(trial["weight_spread"])]
        )  # fmt: skip
    for name in compared.get("trivial", {}):
        measured = [_written(_trivial(compared, name, m), percent=True) for m in methods]
        lines.append([name, *["–"] * len(keys), *measured, "–", "–"])
    spread = "mean ± standard deviation over runs and seeds"
    if compared["metric"]:
        spread = (
            f"probes in percent of {compared['metric']}, {spread}. The constant gives every image "
            "the same answer, which is the chance level; the thumbnail knows 8 x 8 grey levels"
        )
    pieces = [
        table(
            ["Trial", *keys, *methods, "Final loss", "Weight spread"],
            lines,
            f"Every combination, the best by {compared['ranked_by']} first; {spread}.",
            words=frozenset(range(1 + len(keys))),
        )
    ]
    if any(key.startswith("objective") or "students" in key for key in keys):
        pieces.append(note("Losses of different objectives are not on one scale."))
    pieces += [
        note(f"{name} ({trial['label']}) failed: {reason}", warning=True)
        for trial in compared["trials"]
        for name, reason in trial["failed"].items()
    ]
    return join(pieces)


def _probes(compared: Mapping[str, Any]) -> Html:
    groups = [
        (
            method,
            [
                draw.DotRow(
                    trial["trial"],
                    tuple(trial["probes"][method]["values"]),
                    trial["trial"] == compared["best"]["trial"],
                )
                for trial in compared["trials"]
                if method in trial["probes"]
            ]
            + [
                draw.DotRow(name, tuple(own["values"]), False)
                for name in compared.get("trivial", {})
                if name != CONSTANT and (own := _trivial(compared, name, method))
            ],
        )
        for method in compared["methods"]
    ]
    chance = _trivial(compared, CONSTANT, LINEAR)
    title = f"Frozen probes: {compared['task']}"
    drawn = draw.dots(groups, title, compared["metric"], chance["mean"] if chance else None)
    caption = (
        f"{compared['metric'].capitalize()} of each trial: a dot per run and seed of the split, "
        "and mean with spread; the dashed line is the chance level."
    )
    return figure(drawn, "probes", caption)


def _trivial(compared: Mapping[str, Any], name: str, method: str) -> Mapping[str, Any] | None:
    """A trivial candidate's values by a method, or by the one that it has."""
    own = compared.get("trivial", {}).get(name, {})
    found: Mapping[str, Any] | None = own.get(method, own.get(CONSTANT))
    return found


def _losses(compared: Mapping[str, Any]) -> Html:
    shown = [trial for trial in compared["trials"] if trial["loss"]][:DRAWN]
    rows = {row["run"]: row for row in compared["rows"]}
    if not shown:
        return note("No run finished.")
    styles: list[Any] = ["solid", (0, (5, 2)), (0, (3, 1.5, 1, 1.5)), (0, (1, 1.6))]
    drawn = []
    for place, trial in enumerate(shown):
        for name in trial["runs"]:
            if name in rows:
                steps, losses = np.array(rows[name]["curve"], dtype=float).T
                colour = draw.ACCENT if place == 0 else draw.INK if place < 5 else draw.MUTED
                style = styles[place % len(styles)]
                drawn.append(draw.Curve(trial["trial"], steps, losses, colour, style))
    caption = f"Loss over the steps of {len(shown)} trial(s), the best first."
    return figure(draw.curves(drawn, "Loss", "loss"), "loss", caption)


def _summary(values: Sequence[float]) -> dict[str, Any] | None:
    if not values:
        return None
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "spread": spread, "values": [float(v) for v in values]}


def _score(line: Mapping[str, Any], ranked_by: str) -> float | None:
    found = line["loss"] if ranked_by == LOSS else line["probes"].get(ranked_by)
    return None if found is None else float(found["mean"])


def _written(summary: Mapping[str, Any] | None, *, percent: bool = False) -> str:
    if summary is None:
        return "–"
    scale, digits = (100, 1) if percent else (1, 3)
    spread = "" if summary["spread"] is None else f" ± {summary['spread'] * scale:.{digits}f}"
    return f"{summary['mean'] * scale:.{digits}f}{spread}"
