"""The report's section on training: curves of all runs, the weight, reconstructions."""

from typing import Any

import numpy as np

from echostill.eval.reporting import figures as draw
from echostill.eval.reporting.data import Material, RunRecord, data_uri
from echostill.eval.reporting.page import (
    Content,
    Html,
    Section,
    details,
    figure,
    grid,
    heading,
    join,
    note,
    paragraph,
    picture,
    table,
)
from echostill.eval.reporting.results import in_words
from echostill.platform.imaging.images import decode_image, resize_longest

INERT_SPREAD = 0.02  # below this the consistency weight does nothing
PICTURE_SIDE = 900
CORRELATION = "weight_error_correlation"
MOST_GROUPS = 12  # organs or devices listed


def training(material: Material) -> Section:
    """Show the curves of all runs, the consistency weight and reconstructions."""
    logged = ([material.proxy] if material.proxy else []) + sorted(
        material.runs, key=lambda run: not run.distils
    )
    logged = [run for run in logged if run.history]
    if not logged:
        return Section("training", "Training", paragraph("No run has logged metrics."))
    content = [
        table(
            ["Run", "Objective", "Steps", "Epochs", "Pixels", "Frequency", "Distillation",
             "Weight", "Agreement"],
            [_run_line(run) for run in logged],
            "Losses at the last logged step: reconstruction in pixels and in frequency, "
            "distillation unweighted. Weight and agreement (cosine of the teacher's two "
            "views) are the mean and the spread over a batch.",
            words=frozenset({0, 1}),
        )
    ]  # fmt: skip
    content += [
        note(f"{run.name} was trained on another coreset than '{material.coreset_name}'.")
        for run in logged
        if not run.same_coreset
    ]
    content += _weight_notes(logged)
    content += _weight_table(logged)
    panels = [
        _panel(logged, "reconstruction_spatial", "Reconstruction, pixels", "loss", True),
        _panel(logged, "reconstruction_frequency", "Reconstruction, frequency", "loss", True),
        _panel(logged, "distillation", "Distillation", "unweighted loss"),
        _panel(logged, "weight_mean", "Consistency weight", "mean ± spread"),
        _panel(logged, "learning_rate", "Learning rate", "rate"),
        _panel(logged, "gradient_norm", "Gradient norm of the student", "before clipping", True),
    ]
    content.append(grid([panel for panel in panels if panel is not None]))
    content += _reconstructions(material)
    return Section("training", "Training", join(content))


def _panel(
    runs: list[RunRecord], key: str, title: str, label: str, logarithmic: bool = False
) -> Html | None:
    drawn, moves = [], []
    for run in runs:
        rows = [row for row in run.history if key in row]
        if not rows or (run.stage != "distill" and key == "learning_rate"):
            continue
        spread = None
        if key == "weight_mean":
            spread = np.array([row.get("weight_std", 0.0) for row in rows])
        colour, style = _line(run, runs)
        moves.append((run.name, rows[0][key], rows[-1][key]))
        drawn.append(
            draw.Curve(
                run.student,
                np.array([row["step"] for row in rows]),
                np.array([row[key] for row in rows]),
                colour,
                style,
                spread,
            )
        )
    if not drawn:
        return None
    names = ", ".join(dict.fromkeys(curve.label for curve in drawn))
    ends = "; ".join(f"{name} {first:.3g} to {last:.3g}" for name, first, last in moves[:6])
    caption = f"{title} over the steps of {names}. First to last: {ends}."
    return figure(draw.curves(drawn, title, label, logarithmic=logarithmic), key, caption)


def _reconstructions(material: Material) -> list[Html]:
    shown: dict[str, RunRecord] = {}
    for run in sorted(material.runs, key=lambda run: not run.distils):
        if run.picture is not None:
            shown.setdefault(run.student, run)
    pieces: list[Html] = []
    for place, run in enumerate(list(shown.values())[:2]):
        assert run.picture is not None
        uri = data_uri(resize_longest(decode_image(run.picture), PICTURE_SIDE))
        described = (
            "Rows of images: the image, with blocks hidden, its reconstruction, with "
            f"frequency bands removed, its reconstruction, by {run.name}"
        )
        shot = picture(
            uri,
            described,
            f"Both corrupted views and their reconstructions by {run.name}: hidden blocks and "
            "removed bands are predicted, the rest is the input.",
        )
        if place == 0:
            pieces += [heading("Reconstructions"), shot]
        else:
            pieces.append(details(f"Reconstructions of {run.name}", shot))
    return pieces


def _run_line(run: RunRecord) -> list[Content]:
    last = run.history[-1]

    def value(key: str, digits: int = 3) -> str:
        return f"{last[key]:.{digits}f}" if key in last else "–"

    def pair(key: str) -> str:
        return f"{value(f'{key}_mean')} ± {value(f'{key}_std')}" if f"{key}_mean" in last else "–"

    return [
        run.name,
        run.objective.get("preset", "masked image modelling"),
        int(last["step"]),
        value("epoch", 1),
        value("reconstruction_spatial", 4),
        value("reconstruction_frequency", 4),
        value("distillation"),
        pair("weight"),
        pair("consistency"),
    ]


def _weight_notes(runs: list[RunRecord]) -> list[Html]:
    """Say for which runs the consistency weight varies, is fixed, or is inert."""
    fixed: list[str] = []
    inert: list[str] = []
    acting: list[str] = []
    for run in runs:
        if run.weight_spread is None:
            continue
        entry = f"{run.name} ({run.weight_spread:.3f})"
        if run.objective.get("weighting") == "fixed":
            fixed.append(run.name)
        else:
            (inert if run.weight_spread <= INERT_SPREAD else acting).append(entry)
    notes = []
    if acting:
        notes.append(
            note(
                f"the consistency weight varies. Its spread over a batch, averaged over the run: "
                f"{in_words(acting)}; at {INERT_SPREAD} or less it would be inert."
            )
        )
    if inert:
        notes.append(
            note(
                f"inert weight: the consistency weight's spread over a batch, on average over the "
                f"run, is not above {INERT_SPREAD}: {in_words(inert)}. That is plain distillation "
                "with a fixed weight. Use centring, level 'token' or weighting "
                "'batch-normalised'.",
                warning=True,
            )
        )
    if fixed:
        notes.append(note(f"the weight is fixed by configuration: {in_words(fixed)}."))
    return notes


def _weight_table(runs: list[RunRecord]) -> list[Html]:
    """Say what the weight follows: the error of reconstruction, the organ, the device."""
    lines: list[list[Content]] = []
    for run in runs:
        if run.weight_spread is None or run.objective.get("weighting") == "fixed":
            continue
        known = [r[CORRELATION] for r in run.history if CORRELATION in r]
        last = run.history[-1]
        lines.append(
            [
                run.name,
                f"{run.weight_spread:.3f}",
                f"{np.mean(known):+.2f}" if known else "–",
                _means(last, "weight_by_organ/"),
                _means(last, "weight_by_device/"),
            ]
        )
    if not lines:
        return []
    columns = ["Run", "Spread", "Correlation", "By organ", "By device"]
    caption = (
        "The consistency weight: its spread over a batch and its correlation with the error of "
        "reconstruction, both on average over the run, and its mean over the logged batches for "
        f"each organ and device (of more than {MOST_GROUPS}, the lowest and the highest)."
    )
    return [table(columns, lines, caption, words=frozenset({0, 3, 4}))]


def _means(row: dict[str, float], prefix: str) -> str:
    """List the means whose names begin with a prefix, the lowest first."""
    found = sorted(
        (value, key.removeprefix(prefix)) for key, value in row.items() if key.startswith(prefix)
    )
    means = [f"{name} {value:.3f}" for value, name in found]
    if len(means) > MOST_GROUPS:
        half = MOST_GROUPS // 2
        means = [*means[:half], "…", *means[-half:]]
    return ", ".join(means) or "–"


def _line(run: RunRecord, runs: list[RunRecord]) -> tuple[str, Any]:
    """Colour and style of a run: the first distilled student in the accent, others by dashes."""
    if run.stage != "distill":
        return draw.MUTED, (0, (1, 1.6))
    styles = ["solid", (0, (5, 2)), (0, (3, 1.5, 1, 1.5))]
    own = list(dict.fromkeys(r.student for r in runs if r.distils == run.distils and r.stage))
    own = [name for name in own if any(r.student == name and r.stage == "distill" for r in runs)]
    style = styles[min(own.index(run.student), len(styles) - 1)]
    return (draw.ACCENT if run.distils else draw.INK), style
