"""The paper's table of these runs, and of the published numbers: tasks are columns, methods are rows."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import PurePath
from typing import Any

from scipy.special import stdtrit

from justforward.reporting.runs import Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean of n values, and the half-width of its confidence interval, which one value does not have.

    n is 0 for a published number.
    """

    n: int
    mean: float
    half: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Mean with its 95 % confidence interval by Student's t, which takes the values as normal and independent."""
    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Summary(n, mean, None)
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Summary(n, mean, quantile * statistics.stdev(values) / math.sqrt(n))


@dataclass(frozen=True)
class Group:
    """Runs that repeat each other: other seeds and train sets, nothing else."""

    runs: tuple[Run, ...]

    @property
    def key(self) -> tuple[str, str, str]:
        """Model, task and method."""
        return self.runs[0].model, self.runs[0].task, self.runs[0].method

    @property
    def settings(self) -> dict[str, str]:
        """What all of its runs have in common."""
        return self.runs[0].settings

    @property
    def summary(self) -> Summary:
        """Of the metric."""
        return summarise([run.value for run in self.runs])

    @property
    def dev(self) -> float | None:
        """Mean on the development samples; None where a run had none."""
        values = [run.dev for run in self.runs if run.dev is not None]
        return statistics.fmean(values) if len(values) == len(self.runs) else None


def group(runs: Iterable[Run]) -> list[Group]:
    """Runs that differ in nothing but seeds, together. Of the same run made twice the later one counts."""
    kept: dict[Any, Run] = {}
    for run in sorted(runs, key=lambda run: run.when):
        settings = tuple(run.settings.items())
        # Without the run's seed two files may be two seeds.
        which = run.path if run.seed is None and not run.about else (run.seed, run.train_set)
        kept[run.model, run.task, run.method, run.metric, settings, which] = run
    groups: dict[Any, list[Run]] = {}
    for (*key, _), run in kept.items():
        groups.setdefault(tuple(key), []).append(run)
    made = [Group(tuple(sorted(found, key=_seeds))) for found in groups.values()]
    return sorted(made, key=lambda g: (g.key[0], task_order(g.key[1]), method_order(g.key[2]), str(g.settings)))


def choose(groups: Iterable[Group]) -> dict[tuple[str, str, str], Group]:
    """For each model, task and method the settings to show.

    Those with the best mean on the development samples, as in the paper. Where not all have one: those with the most
    runs, and of these the latest. Never by the evaluation samples.
    """
    rivals: dict[tuple[str, str, str], list[Group]] = {}
    for candidate in groups:
        rivals.setdefault(candidate.key, []).append(candidate)
    return {key: _best(found) for key, found in rivals.items()}


def _best(rivals: list[Group]) -> Group:
    if all(g.dev is not None for g in rivals):
        return max(rivals, key=lambda g: g.dev or 0.0)
    return max(rivals, key=lambda g: (len(g.runs), max(run.when for run in g.runs)))


@dataclass(frozen=True)
class Block:
    """Rows of one model: (method, a summary or nothing for each task)."""

    model: str
    published: bool
    rows: list[tuple[str, list[Summary | None]]]


@dataclass(frozen=True)
class Table:
    """tasks: the columns, by the tasks' own names; blocks: one per model, and the published one."""

    tasks: list[str]
    blocks: list[Block]


def make_table(groups: Sequence[Group]) -> Table:
    """Of the tasks that the groups have, in the paper's order."""
    shown = choose(groups)
    tasks = sorted({task for _, task, _ in shown}, key=task_order)
    blocks = []
    for model in dict.fromkeys(model for model, _, _ in shown):
        methods = sorted({method for m, _, method in shown if m == model}, key=method_order)
        cells = [[shown.get((model, task, method)) for task in tasks] for method in methods]
        rows = [(m, [c and c.summary for c in row]) for m, row in zip(methods, cells, strict=True)]
        blocks.append(Block(model, False, rows))
    rows = [(method, [published_value(method, task) for task in tasks]) for method in published()["methods"]]
    if any(cell for _, row in rows for cell in row):
        blocks.append(Block(published()["model"], True, rows))
    return Table(tasks, blocks)


@cache
def published() -> dict[str, Any]:
    """The published numbers and their source."""
    return json.loads(resources.files("justforward.reporting").joinpath("published.json").read_text(encoding="utf-8"))


def published_value(method: str, task: str) -> Summary | None:
    """What was published for a method on a task."""
    numbers, tasks = published()["methods"].get(method), list(published()["tasks"])
    return Summary(0, numbers[tasks.index(task)], None) if numbers and task in tasks else None


def published_source() -> str:
    """Where they are from, in words."""
    p = published()
    return f"{p['authors']} {p['year']}, {p['where']}; {p['num_train']:,} training examples"


def task_title(task: str) -> str:
    """As the paper writes it."""
    return published()["tasks"].get(task, task)


def task_order(task: str) -> tuple[int, str]:
    """The paper's order; other tasks follow by name."""
    return _order(list(published()["tasks"]), task)


def method_order(method: str) -> tuple[int, str]:
    """The paper's order; other methods follow by name."""
    return _order(list(published()["methods"]), method)


def _order(known: list[str], name: str) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def short_models(models: Iterable[str]) -> dict[str, str]:
    """The last part of each model's name, where that tells it from the others."""
    names = list(dict.fromkeys(models))
    lasts = [PurePath(name).name or name for name in names]
    return {name: last if lasts.count(last) == 1 else name for name, last in zip(names, lasts, strict=True)}


def labels(groups: Sequence[Group]) -> list[str]:
    """One label per group: the method; the model, where there are several; the settings in which it has rivals."""
    short = short_models(g.key[0] for g in groups)
    several = len(short) > 1
    named = []
    for one in groups:
        rivals = [g for g in groups if g.key == one.key]
        names = sorted({name for g in rivals for name in g.settings})
        differing = [name for name in names if len({g.settings.get(name) for g in rivals}) > 1]
        settings = [f"{name} {one.settings.get(name, '(default)')}".rstrip() for name in differing]
        model = [short[one.key[0]]] if several else []
        named.append(", ".join([one.key[2], *model, *settings]))
    return named


def _seeds(run: Run) -> tuple[int, int, str]:
    return (-1 if run.train_set is None else run.train_set, -1 if run.seed is None else run.seed, str(run.path))
