"""Charts as matplotlib figures: on the page, as PNG files, and the picture of one training.

Only what draws imports this module: it loads matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from justforward.reporting.charts import Chart, Comparison, Mark, Training, history_charts, race_charts
from justforward.reporting.colours import LIGHT, series_style
from justforward.reporting.svg import inline, save, shown, standalone, tell
from justforward.reporting.tables import task_title
from justforward.results.files import write_text

WIDTH, HEIGHT = 480, 250
"""Of a line chart, in the units of its text; the page scales it."""
ROW, MOST_LETTERS = 24, 30
"""Of a comparison: a row's height, and what is shown of a label."""
MOST_DOTS = 20
"""Longer curves have no dots on them."""
PNG_DPI = 144
_LOOK = style.context(
    {
        **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
        **{f"{axis}tick.major.size": 0 for axis in "xy"},
        **{f"{axis}tick.major.pad": 6 for axis in "xy"},
        **{f"{axis}tick.labelcolor": LIGHT["soft"] for axis in "xy"},
        "axes.autolimit_mode": "round_numbers",
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "axes.labelcolor": LIGHT["soft"],
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "axes.titleweight": "bold",
        "axes.xmargin": 0,
        "axes.ymargin": 0,
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 14,
        "grid.color": LIGHT["rule"],
        "legend.frameon": False,
        "lines.markersize": 5,
        "svg.fonttype": "none",
        "text.color": LIGHT["ink"],
        "text.parse_math": False,
    },
    after_reset=True,  # of what the user's matplotlibrc says
)


@_LOOK
def line_chart(chart: Chart, task: str) -> str:
    """The chart as SVG for the page, which has its title and its legend."""
    figure = _figure(WIDTH, HEIGHT)
    _draw(figure.add_subplot(), chart)
    return inline(figure, f"{chart.title}, {chart.y}", salt=f"{task} {chart.title}")


@_LOOK
def comparison_chart(comparison: Comparison) -> str:
    """SVG for the page: a row per method with a dot and an interval for these runs, a ring for the published number."""
    rows = len(comparison.marks)
    figure = _figure(400, ROW * rows + 40)
    axes = figure.add_subplot(xlim=(0, 100), ylim=(rows - 0.5, -0.5), xticks=range(0, 101, 25))
    axes.grid(axis="x", clip_on=False)
    axes.tick_params(axis="y", pad=10)
    labels = [shown(mark.label) for mark in comparison.marks]
    labels = [text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…" for text in labels]
    for row, (mark, text) in enumerate(zip(comparison.marks, axes.set_yticks(range(rows), labels), strict=True)):
        text.label1.set_color(LIGHT["soft" if mark.mean is None else "ink"])
        _mark(axes, mark, row)
    title = f"These runs and the published numbers on {comparison.task}"
    return inline(figure, title, salt=f"{comparison.task} comparison")


@_LOOK
def write_plots(trainings: Sequence[Training], page: Path) -> list[Path]:
    """The training charts as PNG files, one per task, named after the page and the task."""
    written = []
    for training in trainings:
        entries = (len(training.legend) + 1) // 2
        figure, _ = _panels(training.charts, 20 * entries + 60)
        figure.suptitle(shown(task_title(training.task)), weight="bold")
        handles = [Line2D([], [], **_line_style(series)) for _, series in training.legend]
        names = [shown(label) for label, _ in training.legend]
        figure.legend(handles, names, loc="outside lower center", ncols=2)
        written.append(page.with_name(f"{page.stem}-{re.sub(r'[^A-Za-z0-9_-]', '_', training.task)}.png"))
        save(figure, written[-1], dpi=PNG_DPI)
    return written


@_LOOK
def write_learning_curves(history: Sequence[Mapping[str, float]], held_out: Mapping[str, float], path: Path) -> None:
    """One training's loss and accuracy, as SVG that follows the reader's light or dark, and as PNG beside it.

    Args:
        history: the Trainer's `log_history`: entries with "step" and "loss" or "eval_accuracy".
        held_out: accuracies (0 to 1) on samples that the training never saw, by what was measured ("zero-shot").
        path: the SVG file; the PNG gets its name.
    """
    figure, lines = _panels(history_charts(history, held_out), 70)
    told = [line for line in lines if line.get_label() != "training"]  # which has a panel to itself
    figure.legend(handles=told, loc="outside lower right", ncols=max(len(told), 1))
    write_text(path, standalone(figure, "Loss and accuracy of a training, by step"))
    save(figure, path.with_suffix(".png"), dpi=PNG_DPI)


@_LOOK
def write_race(
    curves: Mapping[str, Sequence[tuple[float, float, float]]], levels: Mapping[str, float], path: Path
) -> None:
    """Accuracy of several trainings over forward passes and over seconds: SVG, and PNG beside it; see `race_charts`."""
    figure, lines = _panels(race_charts(curves, levels), 70)
    told = {str(line.get_label()): line for line in lines}
    figure.legend(handles=list(told.values()), loc="outside lower right", ncols=len(told))
    write_text(path, standalone(figure, "Accuracy of trainings, by forward passes and by seconds"))
    save(figure, path.with_suffix(".png"), dpi=PNG_DPI)


def _figure(width: float, height: float, pad: float = 3) -> Figure:
    """At 72 dots per inch, so that points, pixels and SVG's units are the same."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.set_layout_engine("constrained", w_pad=pad / 72, h_pad=pad / 72)
    return figure


def _panels(charts: Sequence[Chart], more: float) -> tuple[Figure, list[Line2D]]:
    """Charts in two columns, in a figure with so much height more; and what was drawn."""
    rows = (len(charts) + 1) // 2
    figure, drawn = _figure(2 * WIDTH, HEIGHT * rows + more, pad=12), []
    for place, chart in enumerate(charts, start=1):
        drawn += _draw(figure.add_subplot(rows, 2, place, title=f"{chart.title}: {chart.y}"), chart)
    return figure, drawn


def _draw(axes: Axes, chart: Chart) -> list[Line2D]:
    """Curves and levels, each of which names itself when pointed at."""
    drawn = []
    for line in chart.lines:
        xs, ys = zip(*line.points, strict=True)
        look = _line_style(line.series) | {"alpha": 0.85, "label": line.label, "clip_on": False}
        if chart.filled:
            area = axes.fill_between(xs, ys, step="post", alpha=0.12, color=look["color"], linewidth=0, clip_on=False)
            tell(area, line.label)
            drawn += axes.plot(xs, ys, drawstyle="steps-post", **look)
        else:
            drawn += axes.plot(xs, ys, marker="o" if len(xs) <= MOST_DOTS else "", **look)
    for (label, y), (name, dashes) in zip(chart.levels, cycle([("soft", ":"), ("ink", "--")])):
        drawn.append(axes.axhline(y, color=LIGHT[name], linestyle=dashes, label=label, clip_on=False))
    for line in drawn:
        tell(line, str(line.get_label()))
    axes.grid(axis="y", clip_on=False)
    axes.set_xlabel(chart.x)
    axes.locator_params(axis="y", nbins=5)
    axes.locator_params(axis="x", nbins=5, integer=not chart.filled)
    xs = [x for line in chart.lines for x, _ in line.points]
    axes.set_xlim(min(xs) if chart.filled else 0, max(xs, default=0) or 1)
    return drawn


def _line_style(series: int) -> dict[str, Any]:
    name, line = series_style(series)
    return {"color": LIGHT[name], "linestyle": line}


def _mark(axes: Axes, mark: Mark, row: int) -> None:
    drawn, told = [], []
    if mark.published is not None:
        look: dict[str, Any] = {"markersize": 8, "markerfacecolor": LIGHT["paper"], "markeredgewidth": 1.6}
        drawn += axes.plot(mark.published, row, "o", color=LIGHT["soft"], clip_on=False, **look)
        told.append(f"published {mark.published:.1f}")
    if mark.mean is not None:
        if mark.half is not None:
            ends = [min(max(end, 0), 100) for end in (mark.mean - mark.half, mark.mean + mark.half)]
            drawn += axes.plot(ends, [row, row], color=LIGHT["c0"], linewidth=2.5, alpha=0.55, clip_on=False)
        drawn += axes.plot(mark.mean, row, "o", markersize=8, color=LIGHT["c0"], clip_on=False)
        told.insert(0, f"{mark.mean:.1f}" if mark.half is None else f"{mark.mean:.1f} ± {mark.half:.1f}")
    for artist in drawn:
        tell(artist, f"{mark.label}: {', '.join(told)}")
