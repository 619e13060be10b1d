"""The training charts as PNG files, by matplotlib."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from justforward.reporting.charts import Training
from justforward.reporting.tables import task_title


def check_matplotlib() -> None:
    """Raise ValueError, which names the extra to install, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plots needs matplotlib: pip install 'justforward[plots]'")


def write_plots(trainings: Sequence[Training], page: Path) -> list[Path]:
    """One file per task, named after the page and the task."""
    from matplotlib.figure import Figure

    written = []
    for training in trainings:
        rows = (len(training.charts) + 1) // 2
        figure = Figure(figsize=(10, 3.4 * rows), layout="constrained")
        figure.suptitle(_plain(task_title(training.task)))
        for place, chart in enumerate(training.charts, start=1):
            axes = figure.add_subplot(rows, 2, place)
            for line in chart.lines:
                xs, ys = zip(*line.points, strict=True)
                axes.plot(xs, ys, color=f"C{line.series % 10}", linewidth=1.2)
                if chart.filled:
                    axes.fill_between(xs, ys, alpha=0.15, color=f"C{line.series % 10}")
            axes.set(title=f"{chart.title}: {chart.y}", xlabel=chart.x, ylabel=chart.y)
            axes.grid(alpha=0.3)
        handles = [figure.axes[0].plot([], [], color=f"C{series % 10}")[0] for _, series in training.legend]
        names = [_plain(label) for label, _ in training.legend]
        figure.legend(handles, names, loc="outside lower center", ncols=2)
        written.append(page.with_name(f"{page.stem}-{re.sub(r'[^A-Za-z0-9_-]', '_', training.task)}.png"))
        figure.savefig(written[-1], dpi=130)
    return written


def _plain(text: str) -> str:
    """A text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")
