"""Charts of the benchmark's report, in the style of the other pages."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from echostill.eval.reporting.figures import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    SOFT,
    new_figure,
    shorten,
    styled,
)

WIDE = 7.5  # inches, for charts with long names beside them
STYLES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))


@styled
def critical_differences(names: Sequence[str], ranks: np.ndarray, reach: float) -> Figure:
    """Mean ranks, best on top; each bar reaches as far as ranks are not distinguished."""
    order = np.argsort(ranks, kind="stable")
    figure, axis = new_figure(0.9 + 0.3 * len(names), WIDE)
    for place, number in enumerate(order):
        low, high = ranks[number] - reach / 2, ranks[number] + reach / 2
        axis.plot([low, high], [place, place], color=SOFT, lw=5, zorder=1)
        axis.plot([ranks[number]], [place], "D", ms=6, color=ACCENT, mec=PAPER, zorder=2)
    axis.set_yticks(range(len(order)), [shorten(names[number]) for number in order])
    axis.set_ylim(len(order) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(length=0)
    axis.set(title="Mean rank over tasks", xlabel="mean rank, 1 is best")
    return figure


@styled
def forest(lines: Sequence[tuple[str, float, float, float]], title: str, label: str) -> Figure:
    """Values with their intervals, a line each; those whose interval excludes 0 stand out."""
    figure, axis = new_figure(0.95 + 0.27 * len(lines), WIDE)
    axis.axvline(0, color=INK, lw=0.9)
    for place, (_, value, low, high) in enumerate(lines):
        colour = MUTED if low <= 0 <= high else ACCENT
        axis.plot([low, high], [place, place], color=colour, lw=2)
        axis.plot([value], [place], "D", ms=5.5, color=colour, mec=PAPER, mew=0.8)
    axis.set_yticks(range(len(lines)), [shorten(line[0], 40) for line in lines])
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    axis.tick_params(length=0)
    axis.set_xlim(-1.02, 1.02)  # of a few groups an interval may reach further
    axis.set(title=title, xlabel=label)
    return figure


@styled
def over_shares(
    shares: Sequence[float], lines: Sequence[tuple[str, Sequence[float]]], label: str
) -> Figure:
    """A metric over the share of training groups, a line for each candidate."""
    figure, axis = new_figure(3.1)
    for number, (name, values) in enumerate(lines):
        axis.plot(
            [100 * share for share in shares],
            values,
            color=ACCENT if number % 2 else INK,
            linestyle=STYLES[number // 2 % len(STYLES)],
            marker="o",
            ms=4,
            label=shorten(name),
        )
    axis.set_xscale("log")
    axis.set_xticks([100 * share for share in shares], [f"{100 * s:g}" for s in shares])
    axis.minorticks_off()
    axis.set(title="Label efficiency", xlabel="per cent of the training groups", ylabel=label)
    figure.legend(loc="outside lower right", ncols=3, handlelength=2.4)
    return figure


@styled
def against_cost(points: Sequence[tuple[str, float, float]], cost: str, label: str) -> Figure:
    """Accuracy over a cost on a logarithmic axis, a named point for each candidate."""
    figure, axis = new_figure(3.3)
    for name, across, value in points:
        axis.plot([across], [value], "o", ms=6, color=ACCENT, mec=PAPER)
        axis.annotate(
            shorten(name), (across, value), xytext=(5, 3), textcoords="offset points", fontsize=8.5
        )
    axis.set_xscale("log")
    axis.margins(0.18)
    axis.set(title=f"Against {cost}", xlabel=cost, ylabel=label)
    return figure
