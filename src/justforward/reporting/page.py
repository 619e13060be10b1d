"""The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from justforward.reporting.charts import comparisons, trainings
from justforward.reporting.colours import css, series_style
from justforward.reporting.runs import Run
from justforward.reporting.tables import (
    Group,
    choose,
    labels,
    make_table,
    published,
    published_source,
    short_models,
    task_title,
)
from justforward.reporting.texts import NOTE, cell

NOTHING = "–"


def to_html(groups: Sequence[Group], warnings: Sequence[str], files: Sequence[str], axis: str = "steps") -> str:
    """The page. files: names of the files beside it; axis: what trainings are drawn over, one of AXES."""
    from justforward.reporting.figures import comparison_chart, line_chart  # loads matplotlib

    table, names = make_table(groups), labels(groups)
    runs = [(run, name) for g, name in zip(groups, names, strict=True) for run in g.runs]
    rivals = _rivals(groups, names)
    models = short_models(g.key[0] for g in groups)
    sections = [("results", "Results"), ("training", "Training"), ("cost", "Time and memory")]
    sections += [("settings", "Settings")] if rivals else []
    page = _environment().get_template("page.html.jinja")
    return page.render(
        title="justforward report",
        summary=_summary(groups, models),
        sections=[*sections, ("runs", "Runs")],
        warnings=warnings,
        css=Markup(css() + resources.files("justforward.reporting").joinpath("page.css").read_text(encoding="utf-8")),
        note=NOTE,
        table=table,
        models=models,
        has_published=any(block.published for block in table.blocks),
        source=published(),
        source_words=published_source(),
        comparisons=[(c, Markup(comparison_chart(c))) for c in comparisons(groups)],
        trainings=trainings(groups, names, axis),
        line_chart=lambda chart, task: Markup(line_chart(chart, task)),
        costs=_costs(runs),
        rivals=rivals,
        runs=[_details(run, name) for run, name in runs],
        files=[(name, quote(os.fsencode(name))) for name in files],
    )


def _environment() -> Environment:
    loader = PackageLoader("justforward.reporting", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"task_title": task_title, "series_style": series_style}
    return environment


def _summary(groups: Sequence[Group], models: dict[str, str]) -> str:
    count, tasks = sum(len(g.runs) for g in groups), len({g.key[1] for g in groups})
    shown = ", ".join(models.values()) if len(models) <= 3 else f"{len(models)} models"
    return f"{many(count, 'run')} on {many(tasks, 'task')} · {shown}"


def many(count: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _costs(runs: Sequence[tuple[Run, str]]) -> dict[str, Any]:
    per_step = [run.seconds_per_step for run, _ in runs]
    unit, scale = ("s", 1) if max((s for s in per_step if s), default=0.0) >= 1 else ("ms", 1000)
    rows = []
    for (run, name), seconds in zip(runs, per_step, strict=True):
        memory, steps = run.peak_memory_mib, run.numbers.get("train_steps")
        rows.append(
            {
                "name": _name(run, name),
                "seeds": _seeds(run),
                "device": run.about.get("device") or NOTHING,
                "steps": NOTHING if steps is None else f"{steps:,.0f}",
                "step": NOTHING if seconds is None else f"{seconds * scale:,.{2 if unit == 's' else 1}f}",
                "total": f"{run.numbers['seconds']:,.1f}" if "seconds" in run.numbers else NOTHING,
                "memory": NOTHING if memory is None else f"{memory / 1024:.2f}",
            }
        )
    return {"unit": unit, "rows": rows}


def _rivals(groups: Sequence[Group], names: Sequence[str]) -> list[dict[str, Any]]:
    """All settings of what was run with several."""
    chosen = choose(groups)
    rows = []
    for g, name in zip(groups, names, strict=True):
        if sum(other.key == g.key for other in groups) > 1:
            rows.append(
                {
                    "name": _name(g.runs[0], name.split(",")[0]),
                    "chosen": chosen[g.key] is g,
                    "settings": ", ".join(f"{key} {value}".rstrip() for key, value in g.settings.items()),
                    "dev": NOTHING if g.dev is None else f"{g.dev:.1f}",
                    "result": cell(g.summary).split(" (")[0],
                    "n": g.summary.n,
                }
            )
    return rows


def _details(run: Run, name: str) -> dict[str, Any]:
    versions = run.about.get("versions")
    facts = [
        (run.metric, f"{run.value:.2f} % on {run.numbers.get('num_eval', 0):,.0f} evaluation samples"),
        ("development", None if run.dev is None else f"{run.dev:.2f} %"),
        ("model", run.model),
        ("device", run.about.get("device")),
        ("processes", run.about.get("processes") if run.about.get("processes") != 1 else None),
        ("date", run.about.get("date")),
        ("versions", ", ".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else None),
        ("result file", run.path),
        ("training log", run.log.folder if run.log else None),
    ]
    return {
        "name": _name(run, name),
        "seeds": _seeds(run),
        "value": f"{run.value:.1f}",
        "command": run.command,
        "facts": [(word, value) for word, value in facts if value is not None],
    }


def _name(run: Run, label: str) -> str:
    return f"{task_title(run.task)}, {label}"


def _seeds(run: Run) -> str:
    parts = [("train set", run.train_set), ("seed", run.seed)]
    return ", ".join(f"{word} {value}" for word, value in parts if value is not None)
