"""Figures of the report as inline SVG that takes its colours from the page, light or dark.

Matplotlib draws with a few marker colours, which are then replaced by the page's CSS variables.
Figures are small, so that their text stays readable on a phone; the page lays them out.
"""

import functools
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

Drawn = ParamSpec("Drawn")

# Colour as matplotlib writes it, and the page's variable that takes its place.
INK, MUTED, RULE, ACCENT, SOFT, PAPER = (
    "#101112",
    "#707172",
    "#d0d1d2",
    "#0b6e98",
    "#a0b1c2",
    "#fefdfc",
)
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    RULE: "rule",
    ACCENT: "accent",
    SOFT: "soft",
    PAPER: "paper",
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
}
WIDTH = 4.5  # inches
POINTS = 1400  # most points a scatter draws: every one is an element of the page


def styled(draw: Callable[Drawn, Figure]) -> Callable[Drawn, Figure]:
    """Draw in the report's style: matplotlib reads it whenever an artist is made."""

    @functools.wraps(draw)
    def drawn(*args: Drawn.args, **kwargs: Drawn.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Any]:
    """Return a figure with one axis; no window system is involved."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """Serialise a figure for inlining.

    Args:
        figure: What to draw.
        name: Unique on the page; keeps the ids of figures apart.
        description: What it shows, for those who cannot see it; plain text.

    Returns:
        An ``<svg>`` element whose colours are CSS variables and whose text is text.
    """
    sink = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure.savefig(sink, format="svg", transparent=True, metadata={"Date": None})
    svg = sink.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    label = escape_attribute(description)
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _plain_ticks(axis: Any, steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Write the ticks of a logarithmic axis as plain numbers."""
    axis.set_major_locator(LogLocator(subs=steps, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def escape_attribute(text: str) -> str:
    """Escape a text for a double-quoted attribute."""
    for raw, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(raw, safe)
    return text


def shorten(text: str, length: int = 24) -> str:
    """Cut a text for an axis, and keep matplotlib from reading formulas out of it."""
    cut = text if len(text) <= length else text[: length - 1] + "…"
    return cut.replace("$", r"\$")


@styled
def bars(pairs: Sequence[tuple[str, float]], title: str, label: str) -> Figure:
    """Horizontal bars, the first pair on top, values written at their ends."""
    figure, axis = new_figure(0.75 + 0.29 * len(pairs))
    places = np.arange(len(pairs))
    values = [value for _, value in pairs]
    axis.barh(places, values, height=0.62, color=ACCENT)
    for place, value in zip(places, values, strict=True):
        axis.annotate(
            f" {value:,}",
            (value, place),
            va="center",
            fontsize=9,
            color=MUTED,
        )
    axis.set_yticks(places, [shorten(name) for name, _ in pairs])
    axis.invert_yaxis()
    axis.set_xlim(0, max(values, default=1) * 1.16)
    axis.grid(visible=False, axis="y")
    axis.tick_params(length=0)
    axis.set(title=title, xlabel=label)
    return figure


@styled
def sizes(width: np.ndarray, height: np.ndarray) -> Figure:
    """Original sizes as bubbles, their area in proportion to how many images have them."""
    pairs, number = np.unique(np.stack([width, height], axis=1), axis=0, return_counts=True)
    order = np.argsort(-number, kind="stable")[:400]
    figure, axis = new_figure(3.0)
    area = 12 + 380 * number[order] / number.max()
    axis.scatter(
        *pairs[order].T, s=area, color=ACCENT, alpha=0.35, linewidths=0.6, edgecolors=PAPER
    )
    axis.margins(0.12)
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(MaxNLocator(6, integer=True))
    axis.set(title="Original sizes", xlabel="width in pixels", ylabel="height in pixels")
    return figure


@styled
def histogram(values: np.ndarray, title: str, label: str, quantity: str) -> Figure:
    """Histogram of whole numbers on a logarithmic count axis."""
    figure, axis = new_figure(3.0)
    highest = int(values.max())
    edges = np.arange(1, highest + 2)
    if highest > 40:
        edges = np.unique(np.geomspace(1, highest + 1, 24).round())
    axis.hist(values, bins=edges - 0.5, color=ACCENT, edgecolor=PAPER, linewidth=0.6)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.7)
    _plain_ticks(axis.yaxis)
    if highest > 40:
        axis.set_xscale("log")
        axis.set_xlim(left=0.51)
        _plain_ticks(axis.xaxis)
    axis.set(title=title, xlabel=label, ylabel=quantity)
    return figure


@styled
def cluster_bars(size: np.ndarray, quota: np.ndarray, selected: np.ndarray) -> Figure:
    """Clusters from the largest: members, quota and selected."""
    figure, axis = new_figure(2.9, width=9.2)
    places = np.arange(len(size))
    axis.bar(places, size, width=0.78, color=SOFT, label="members")
    axis.bar(places, selected, width=0.78, color=ACCENT, label="selected")
    axis.hlines(quota, places - 0.42, places + 0.42, color=INK, linewidth=1.3, label="quota")
    axis.set_xlim(-0.7, len(size) - 0.3)
    axis.set_xticks([])
    axis.grid(visible=False, axis="x")
    axis.set(title="Members, selected, quota", xlabel="clusters, largest first", ylabel="images")
    axis.legend(loc="upper right", ncols=3)
    return figure


@styled
def shares(names: Sequence[str], before: np.ndarray, after: np.ndarray) -> Figure:
    """Share of each organ in the pool (ring) and in the coreset (dot), joined by a line."""
    figure, axis = new_figure(0.95 + 0.36 * len(names))
    places = np.arange(len(names))
    axis.hlines(places, before, after, color=SOFT, linewidth=3)
    axis.plot(before, places, "o", ms=8, mfc=PAPER, mec=INK, mew=1.3, label="pool")
    axis.plot(after, places, "o", ms=6.5, color=ACCENT, label="coreset")
    axis.set_yticks(places, [shorten(name) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.margins(x=0.1)
    axis.tick_params(length=0)
    axis.grid(visible=False, axis="y")
    axis.set(title="Share of each organ", xlabel="per cent of the images")
    figure.legend(loc="outside lower right", ncols=2)
    return figure


@dataclass(frozen=True)
class Boundary:
    """Where the dual rank ends the selection: alpha x + (1 - alpha) y = level."""

    alpha: float
    low: float
    median: float
    high: float


@styled
def ranks(
    distance: np.ndarray, gradient: np.ndarray, selected: np.ndarray, boundary: Boundary | None
) -> Figure:
    """Both ranks over the cluster's size against each other."""
    figure, axis = new_figure(4.3)
    step = max(1, -(-len(distance) // POINTS))
    own = selected[::step]
    x, y = distance[::step], gradient[::step]
    if boundary is not None:
        _draw_boundary(axis, boundary)
    axis.scatter(x[~own], y[~own], s=9, facecolors="none", edgecolors=MUTED, linewidths=0.7,
                 label="not selected")  # fmt: skip
    axis.scatter(x[own], y[own], s=13, color=ACCENT, linewidths=0, label="selected")
    axis.set(
        title="Distance rank and gradient rank",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        xlabel="distance rank / cluster size  (left: nearest)",
        ylabel="gradient rank / cluster size  (low: largest)",
    )
    axis.set_aspect("equal")
    figure.legend(loc="outside lower right", ncols=3)
    return figure


def _draw_boundary(axis: Any, boundary: Boundary) -> None:
    across = np.linspace(0, 1.02, 60)

    def line(level: float) -> np.ndarray:
        return (level - boundary.alpha * across) / max(1 - boundary.alpha, 1e-9)

    if boundary.alpha >= 1:
        axis.axvline(boundary.median, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
        return
    axis.fill_between(across, line(boundary.low), line(boundary.high), color=SOFT, alpha=0.35, lw=0)
    axis.plot(across, line(boundary.median), color=INK, lw=1.2, ls=(0, (4, 3)), label="boundary")


@styled
def checkpoints(gradient: np.ndarray, selected: np.ndarray) -> Figure:
    """Quantiles of the gradient norm at each checkpoint, and the medians of both sets."""
    figure, axis = new_figure(4.3)
    steps = np.arange(1, gradient.shape[1] + 1)
    low, lower, upper, high = np.nanquantile(gradient, [0.05, 0.25, 0.75, 0.95], axis=0)
    axis.fill_between(steps, low, high, color=SOFT, alpha=0.3, lw=0, label="5 to 95% of the pool")
    axis.fill_between(steps, lower, upper, color=SOFT, alpha=0.55, lw=0, label="middle half")
    for own, colour, style, label in (
        (~selected, INK, (0, (4, 3)), "median, not selected"),
        (selected, ACCENT, "solid", "median, selected"),
    ):
        if own.any():
            median = np.nanmedian(gradient[own], axis=0)
            axis.plot(steps, median, color=colour, ls=style, marker="o", ms=4, label=label)
    axis.set_xticks(steps)
    axis.set_ylim(bottom=0)
    axis.set(
        title="Gradient over checkpoints", xlabel="checkpoint of the proxy", ylabel="gradient norm"
    )
    figure.legend(loc="outside lower right", ncols=2)
    return figure


@dataclass(frozen=True)
class Curve:
    """A logged quantity of one run."""

    label: str
    steps: np.ndarray
    values: np.ndarray
    colour: str
    style: Any = "solid"
    spread: np.ndarray | None = None


@styled
def curves(drawn: Sequence[Curve], title: str, label: str, *, logarithmic: bool = False) -> Figure:
    """A panel of curves over steps; runs of one student share a line style and a legend entry."""
    figure, axis = new_figure(3.1)
    named: set[str] = set()
    for curve in drawn:
        own = curve.label if curve.label not in named else None
        named.add(curve.label)
        if curve.spread is not None:
            below, above = curve.values - curve.spread, curve.values + curve.spread
            axis.fill_between(curve.steps, below, above, color=SOFT, alpha=0.4, lw=0)
        axis.plot(
            curve.steps,
            curve.values,
            color=curve.colour,
            linestyle=curve.style,
            label=shorten(own) if own else None,
            zorder=3 if curve.colour == ACCENT else 2,
        )
    if logarithmic and all((curve.values > 0).all() for curve in drawn):
        axis.set_yscale("log")
        _plain_ticks(axis.yaxis, (1.0, 2.0, 3.0, 5.0))
    axis.set_xlim(left=0)
    axis.set(title=title, xlabel="step", ylabel=label)
    figure.legend(loc="outside lower right", ncols=3, handlelength=2.4)
    return figure


@dataclass(frozen=True)
class DotRow:
    """One line of a chart: its values, and the interval of their mean (None is the spread)."""

    label: str
    values: tuple[float, ...]
    emphasised: bool
    interval: tuple[float, float] | None = None


@styled
def dots(
    groups: Sequence[tuple[str, Sequence[DotRow]]],
    title: str,
    label: str,
    reference: float | None = None,
) -> Figure:
    """Rings of the trainings, their mean with its interval; a line for chance, or for 0."""
    rows = sum(len(members) + 1 for _, members in groups)
    figure, axis = new_figure(0.85 + 0.26 * rows)
    if reference is not None:
        axis.axvline(reference, color=MUTED, lw=1, ls="--", zorder=0)
    place, places, names = 0.0, [], []
    for method, members in groups:
        axis.annotate(
            method, (0, place), xycoords=("axes fraction", "data"), xytext=(2, 0),
            textcoords="offset points", va="center", fontsize=9, fontstyle="italic", color=MUTED,
        )  # fmt: skip
        place += 1
        for row in members:
            colour = ACCENT if row.emphasised else INK
            mean = float(np.mean(row.values))
            spread = float(np.std(row.values, ddof=1)) if len(row.values) > 1 else 0.0
            interval = row.interval or (mean - spread, mean + spread)
            axis.plot(interval, [place, place], color=colour, lw=2, zorder=2)
            axis.plot([mean], [place], "D", ms=6, color=colour, mec=PAPER, mew=0.8, zorder=3)
            axis.plot(
                row.values, [place] * len(row.values), "o", ms=5, mfc="none", mec=colour, mew=1,
                alpha=0.75, zorder=1,
            )  # fmt: skip
            places.append(place)
            names.append(shorten(row.label))
            place += 1
    axis.set_yticks(places, names)
    axis.set_ylim(place - 0.4, -0.6)
    axis.margins(x=0.08)
    axis.grid(visible=False, axis="y")
    axis.tick_params(length=0)
    axis.set(title=title, xlabel=label)
    return figure
