"""What is drawn: charts as data, which `figures` draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from justforward.reporting.runs import AXES, Run
from justforward.reporting.tables import (
    Group,
    choose,
    method_order,
    published,
    published_value,
    short_models,
    task_order,
)

MOST_POINTS = 120
WINDOWS = 40
"""Points of the projected gradient's course: single steps are noise."""
BINS = 41
TAIL = 0.99
"""The histogram shows this share of the projected gradients: a few outliers would leave one bar of the rest."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One run's curve, or one group's histogram. `series` picks the colour, the same for a label on the whole page."""

    label: str
    series: int
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis.

    filled: the lines are histograms, whose points are the bins' left edges and, at last, the right end; levels: (label,
    y) of horizontal lines.
    """

    title: str
    x: str
    y: str
    lines: list[Line]
    filled: bool = False
    note: str = ""
    levels: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Mark:
    """A row of a comparison: what these runs reached, and what was published for the method."""

    label: str
    mean: float | None
    half: float | None
    published: float | None


@dataclass(frozen=True)
class Comparison:
    """The methods of one task."""

    task: str
    marks: list[Mark]


@dataclass(frozen=True)
class Training:
    """The charts of one task, and the labels in their legend: (label, series)."""

    task: str
    charts: list[Chart]
    legend: list[tuple[str, int]] = field(default_factory=list)


def comparisons(groups: Sequence[Group]) -> list[Comparison]:
    """One per task: the paper's methods and ours, each once per model."""
    shown = choose(groups)
    short = short_models(model for model, _, _ in shown)
    made = []
    for task in sorted({task for _, task, _ in shown}, key=task_order):
        methods = {method for method in published()["methods"] if published_value(method, task)}
        methods |= {method for _, t, method in shown if t == task}
        marks = []
        for method in sorted(methods, key=method_order):
            value = published_value(method, task)
            reference = None if value is None else value.mean
            ours = [(model, g) for (model, t, m), g in shown.items() if (t, m) == (task, method)]
            for model, g in ours:
                label = f"{method}, {short[model]}" if len(short) > 1 else method
                marks.append(Mark(label, g.summary.mean, g.summary.half, reference))
            if not ours:
                marks.append(Mark(method, None, None, reference))
        made.append(Comparison(task, marks))
    return made


def race_charts(curves: Mapping[str, Sequence[tuple[float, float, float]]], levels: Mapping[str, float]) -> list[Chart]:
    """Accuracies (0 to 1) of several trainings, over forward passes and over seconds.

    Args:
        curves: by label, points of (forward passes, seconds, accuracy).
        levels: accuracies to compare with, by label.
    """
    lines = tuple((label, 100 * y) for label, y in levels.items())

    def chart(title: str, x: str, place: int) -> Chart:
        drawn = [
            Line(label, i, [(point[place], 100 * point[2]) for point in points])
            for i, (label, points) in enumerate(curves.items())
        ]
        return Chart(title, x, "accuracy, %", drawn, levels=lines)

    return [chart("By work", AXES["forwards"], 0), chart("By time", AXES["seconds"], 1)]


def trainings(groups: Sequence[Group], names: Sequence[str], axis: str = "steps") -> list[Training]:
    """One per task that has training logs; names are the groups' labels, axis one of AXES."""
    logged = [(g, name) for g, name in zip(groups, names, strict=True) if _logged(g)]
    series = {name: i for i, name in enumerate(dict.fromkeys(name for _, name in logged))}
    made = []
    for task in sorted({g.key[1] for g, _ in logged}, key=task_order):
        lines = [(g, name, series[name]) for g, name in logged if g.key[1] == task]
        charts = [_losses(lines, axis), _evaluations(lines, axis), _histogram(lines), _course(lines, axis)]
        charts = [chart for chart in charts if chart.lines]
        if charts:
            made.append(Training(task, charts, [(name, number) for _, name, number in lines]))
    return made


def history_charts(history: Sequence[Mapping[str, float]], held_out: Mapping[str, float]) -> list[Chart]:
    """Loss and accuracy of one training; held_out: accuracies (0 to 1) of before and after, by name."""
    losses = [Line("training", 0, _points(history, "loss"))]
    accuracies = [Line("development set", 2, _points(history, "eval_accuracy", 100))]
    levels = [(f"held out, {name}: {100 * value:.1f} %", 100 * value) for name, value in held_out.items()]
    return [
        Chart("Training", "step", "loss", _with_points(losses)),
        Chart("Evaluation", "step", "accuracy (%)", _with_points(accuracies), levels=tuple(levels)),
    ]


_Lines = Sequence[tuple[Group, str, int]]


def _logged(g: Group) -> bool:
    return any(run.log is not None and (run.log.history or run.log.gradients) for run in g.runs)


def _losses(lines: _Lines, axis: str) -> Chart:
    made = [
        Line(_with_seed(name, run), series, _over(run, axis, _points(run.history, "loss")))
        for g, name, series in lines
        for run in g.runs
    ]
    return Chart("Training", AXES[axis], "loss", _with_points(made))


def _over(run: Run, axis: str, points: list[Point]) -> list[Point]:
    """Points over steps, over another axis; none where the run does not tell."""
    per_step = run.per_step(axis)
    return [] if per_step is None else [(per_step * x, y) for x, y in points]


def _evaluations(lines: _Lines, axis: str) -> Chart:
    names = {name for g, _, _ in lines for run in g.runs for entry in run.history for name in entry}
    measured = [name for name in ("eval_accuracy", "eval_f1") if name in names]
    key, scale = (measured[0], 100) if measured else ("eval_loss", 1)
    made = [
        Line(_with_seed(name, run), series, _over(run, axis, _points(run.history, key, scale)))
        for g, name, series in lines
        for run in g.runs
    ]
    word = key.removeprefix("eval_")
    return Chart("Evaluation", AXES[axis], f"{word} (%)" if measured else word, _with_points(made))


def _histogram(lines: _Lines) -> Chart:
    found = [(name, series, _gradients(g)) for g, name, series in lines]
    found = [(name, series, values) for name, series, values in found if len(values)]
    everything = np.concatenate([values for _, _, values in found]) if found else np.zeros(0)
    chart = Chart("Projected gradient", "projected gradient", "share of steps (%)", [])
    if not len(everything):
        return chart
    limit = float(np.quantile(np.abs(everything), TAIL)) or 1.0
    edges = np.linspace(-limit, limit, BINS + 1)
    for name, series, values in found:
        shares = 100 * np.histogram(values, edges)[0] / len(values)
        points = [(float(x), float(y)) for x, y in zip(edges, [*shares, shares[-1]], strict=True)]
        chart.lines.append(Line(name, series, points))
    beyond = int((np.abs(everything) > limit).sum())
    return dataclasses.replace(chart, filled=True, note=f"{beyond:,} of {len(everything):,} lie outside this range")


def _course(lines: _Lines, axis: str) -> Chart:
    made = []
    for g, name, series in lines:
        for run in g.runs:
            squares = [(float(step), value**2) for step, value in (run.log.gradients if run.log else [])]
            points = [(step, y**0.5) for step, y in thin(squares, WINDOWS)]
            made.append(Line(_with_seed(name, run), series, _over(run, axis, points)))
    word = AXES[axis]
    return Chart(f"Projected gradient by {word}", word, "root mean square", _with_points(made))


def _gradients(g: Group) -> np.ndarray:
    return np.array([value for run in g.runs if run.log for _, value in run.log.gradients])


def _points(history: Sequence[Mapping[str, float]], key: str, scale: float = 1) -> list[Point]:
    return thin([(entry["step"], scale * entry[key]) for entry in history if key in entry])


def _with_seed(name: str, run: Run) -> str:
    parts = [("train set", run.train_set), ("seed", run.seed)]
    return ", ".join([name, *(f"{word} {value}" for word, value in parts if value is not None)])


def _with_points(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line.points]


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most so many points: means of neighbours."""
    if len(points) <= most:
        return points
    parts = np.array_split(np.array(points, dtype=float), most)
    return [(float(x), float(y)) for x, y in (part.mean(axis=0) for part in parts)]
