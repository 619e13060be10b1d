"""The table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

from justforward.reporting.tables import (
    Group,
    Summary,
    Table,
    published,
    published_source,
    published_value,
    short_models,
    task_title,
)

NOTE = "Percent. Mean ± half-width of the 95 % confidence interval over n runs (train sets and seeds; Student's t)."
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#&~])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def cell(summary: Summary | None) -> str:
    """67.9 ± 2.1 (n = 3); a published number stands alone."""
    if summary is None:
        return ""
    half = "" if summary.half is None else f" ± {summary.half:.1f}"
    return f"{summary.mean:.1f}{half}" + (f" (n = {summary.n})" if summary.n else "")


def to_markdown(table: Table) -> str:
    """One table per model."""
    lines = ["# Results", "", NOTE]
    short = short_models(block.model for block in table.blocks)
    for block in table.blocks:
        title = f"Published, {block.model}" if block.published else short[block.model]
        lines += ["", f"## {_escape_markdown(title)}", ""]
        lines += [f"{published_source()}, {published()['link']}", ""] if block.published else []
        lines.append("| Method | " + " | ".join(_escape_markdown(task_title(task)) for task in table.tasks) + " |")
        lines.append("|---|" + "--:|" * len(table.tasks))
        for method, row in block.rows:
            lines.append(f"| {_escape_markdown(method)} | " + " | ".join(cell(s) for s in row) + " |")
    return "\n".join(lines) + "\n"


def to_csv(groups: Sequence[Group], tasks: Sequence[str]) -> str:
    """A row per group of runs, with every settings, and a row per published number of the same tasks."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["source", "model", "method", "task", "metric", "mean", "ci95", "n", "dev", "values", "settings"])
    for g in groups:
        summary, values = g.summary, " ".join(f"{run.value:.4f}" for run in g.runs)
        half = "" if summary.half is None else f"{summary.half:.4f}"
        dev = "" if g.dev is None else f"{g.dev:.4f}"
        settings = " ".join(f"{name}={value}" for name, value in g.settings.items())
        model, task, method = g.key
        row = ["run", model, method, task, g.runs[0].metric, f"{summary.mean:.4f}", half, summary.n, dev, values]
        writer.writerow([*row, settings])
    for method in published()["methods"]:
        for task in tasks:
            value = published_value(method, task)
            if value is not None:
                source = f"published ({published()['link']})"
                writer.writerow([source, published()["model"], method, task, "", value.mean, "", "", "", "", ""])
    return out.getvalue()


def to_latex(table: Table) -> str:
    """A booktabs table, to be put in with \\input."""
    width = len(table.tasks) + 1
    short = short_models(block.model for block in table.blocks)
    lines = [r"% \usepackage{booktabs}", rf"\begin{{tabular}}{{l{'r' * len(table.tasks)}}}", r"\toprule"]
    lines.append(" & ".join(["Method", *(_escape_latex(task_title(task)) for task in table.tasks)]) + r" \\")
    for block in table.blocks:
        title = f"Published, {block.model} ({published_source()})" if block.published else short[block.model]
        lines += [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\emph{{{_escape_latex(title)}}}}} \\"]
        lines += [_latex_row(method, row) for method, row in block.rows]
    lines += [r"\bottomrule", r"\end{tabular}", f"% {NOTE}"]
    return "\n".join(lines) + "\n"


def _latex_row(method: str, row: Sequence[Summary | None]) -> str:
    cells = [_escape_latex(method)]
    for summary in row:
        if summary is None:
            cells.append("--")
            continue
        half = "" if summary.half is None else rf"$\pm$ {summary.half:.1f}, "
        cells.append(f"{summary.mean:.1f}" + (rf" {{\scriptsize {half}$n={summary.n}$}}" if summary.n else ""))
    return " & ".join(cells) + r" \\"


def _escape_markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))
