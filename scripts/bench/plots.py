"""Plots for docs/benchmarks.md: SVG, the same figures giving the same bytes. Needs the extra `bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from scripts.bench.report import PAGE
from scripts.bench.steps import Part

FOLDER: Final = PAGE.with_suffix("")
_STYLE: Final[Any] = {
    "svg.hashsalt": "zkc", "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0, "axes.spines.top": False, "axes.spines.right": False, "axes.grid.axis": "both",
    "grid.color": "#dddddd", "grid.linewidth": 0.6, "legend.frameon": False,
}
_COLOURS: Final = ("#0072b2", "#009e73", "#d55e00", "#cc79a7")
"""Told apart by the colour-blind too (Okabe and Ito)."""
_REFERENCES: Final = (("#444444", "--"), ("#888888", "-."), ("#444444", ":"))
_LETTER: Final = 0.0095
"""Share of a plot's width that a letter of a step's name takes."""


@dataclass(frozen=True)
class Curve:
    """One line; a reference is what others are read against."""

    name: str
    points: Sequence[tuple[float, float]]
    reference: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves over one axis, both axes logarithmic."""

    title: str
    y_label: str
    curves: Sequence[Curve]
    y_unit: Mapping[float, str]
    """What is written at which height."""
    y_range: tuple[float, float] | None = None
    """Shown at least, and nothing lower."""


def panels(shown: Sequence[Panel], x_label: str, x_unit: Mapping[float, str]) -> Figure:
    """Side by side over the same axis."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.2 * len(shown), 4.4), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw(axes, panel)
            axes.set(title=panel.title, xlabel=x_label, ylabel=panel.y_label)
            _scale(axes.xaxis, axes.set_xscale, x_unit)
            _scale(axes.yaxis, axes.set_yscale, panel.y_unit)
            axes.grid(visible=True)
            # Below the plot: it covers nothing.
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
        return figure


def _draw(axes: Any, panel: Panel) -> None:
    colours, greys = iter(_COLOURS), iter(_REFERENCES)
    for curve in panel.curves:
        xs, ys = zip(*curve.points, strict=True)
        if curve.reference:
            colour, dashes = next(greys)
            axes.plot(xs, ys, label=curve.name, color=colour, linestyle=dashes, linewidth=1.2)
        else:
            axes.plot(xs, ys, label=curve.name, color=next(colours), marker="o", markersize=4, linewidth=1.8)
    if panel.y_range is not None:
        low, high = panel.y_range
        axes.set_ylim(low, max(high, 1.3 * max(y for curve in panel.curves for _, y in curve.points)))


def _scale(axis: Any, set_scale: Any, unit: Mapping[float, str]) -> None:
    set_scale("log")
    low, high = axis.get_view_interval()
    shown = [at for at in unit if low <= at <= high]
    axis.set_major_locator(FixedLocator(shown) if shown else LogLocator())
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda at, _: unit.get(at, "")))


def bars(
    title: str, rows: Mapping[str, Sequence[Part]], owners: Mapping[str, tuple[str, str]], x_label: str
) -> Figure:
    """A bar for each row, its parts in their order, coloured by owner; ``owners``: what each is called, its colour."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10.4, 1.4 + 0.85 * len(rows)), layout="constrained")
        axes = figure.subplots()
        longest = max(sum(part.length for part in parts) for parts in rows.values())
        for at, parts in enumerate(rows.values()):
            _bar(axes, at, parts, owners, longest)
        axes.set(title=title, xlabel=x_label, xlim=(0, longest * 1.01), ylim=(len(rows) - 0.4, -0.7))
        axes.set_yticks(range(len(rows)), labels=list(rows))
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=True, axis="x")
        axes.set_axisbelow(True)
        patches = [Patch(facecolor=colour, edgecolor="#555555", linewidth=0.4, label=name) for name, colour in
                   owners.values()]
        axes.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.4, -0.5 / (0.3 + len(rows))), ncols=3)
        return figure


def _bar(axes: Any, at: int, parts: Sequence[Part], owners: Mapping[str, tuple[str, str]], longest: float) -> None:
    left = 0.0
    spans: dict[str, tuple[float, float]] = {}
    for part in parts:
        _, colour = owners[part.owner]
        axes.barh(at, part.length, left=left, height=0.45, color=colour, edgecolor="#555555", linewidth=0.4)
        begin, _ = spans.get(part.step, (left, 0.0))
        left += part.length
        spans[part.step] = (begin, left)
    for step, (begin, end) in spans.items():
        axes.plot([begin, begin], [at - 0.36, at + 0.225], color="#222222", linewidth=0.8)
        if end - begin > _LETTER * len(step) * longest:
            axes.text((begin + end) / 2, at - 0.28, step, ha="center", va="bottom", fontsize=8)
    axes.plot([left, left], [at - 0.36, at + 0.225], color="#222222", linewidth=0.8)


def save(figure: Figure, name: str, words: str, *, quick: bool) -> str:
    """Keep it beside the page, but for a quick run; what shows it in the page, with ``words`` for who cannot see it."""
    with mpl.rc_context(_STYLE):
        drawn = BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    if not quick:
        FOLDER.mkdir(exist_ok=True)
        # Without the blanks at the ends of its lines, which the project has nowhere.
        lines = drawn.getvalue().decode().splitlines()
        (FOLDER / f"{name}.svg").write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")
    return f"![{words}]({FOLDER.name}/{name}.svg)"
