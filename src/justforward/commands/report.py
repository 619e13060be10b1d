"""`justforward report`: runs on one HTML page beside the published numbers, and as Markdown, CSV and LaTeX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from justforward.command_line.parser import Parser
from justforward.reporting.charts import trainings
from justforward.reporting.page import many, to_html
from justforward.reporting.reading import read_runs
from justforward.reporting.runs import AXES
from justforward.reporting.tables import Group, group, labels, make_table
from justforward.reporting.texts import to_csv, to_latex, to_markdown
from justforward.results.files import write_text


def report_command(words: list[str]) -> None:
    """`justforward report PATH ... --output report.html --plots`."""
    given = parse(words)
    page = Path(given.output)
    if page.suffix != ".html":
        raise ValueError(f"--output {given.output}: give a name that ends in .html; the other files get its name")
    runs, warnings = read_runs(given.paths)
    groups = group(runs)
    repeated = len(runs) - sum(len(g.runs) for g in groups)
    if repeated:
        warnings.append(f"{repeated} of {len(runs)} results are of a run that was made again: the later one counts")
    for line in warnings:
        print(f"justforward: warning: {' '.join(line.split())}", file=sys.stderr)
    table = make_table(groups)
    texts = {".md": to_markdown(table), ".csv": to_csv(groups, table.tasks), ".tex": to_latex(table)}
    files = {page.with_suffix(suffix): text for suffix, text in texts.items()}
    files = {page: to_html(groups, warnings, [path.name for path in files], given.x), **files}
    try:
        for path, text in files.items():
            write_text(path, text)
        drawn = _write_plots(groups, page, given.x) if given.plots else []
    except OSError as error:
        raise ValueError(f"--output {given.output}: cannot write ({error.strerror})") from error
    print(f"{many(len(runs), 'run')} -> {', '.join(str(path) for path in [*files, *drawn])}")


def _write_plots(groups: Sequence[Group], page: Path, axis: str) -> list[Path]:
    from justforward.reporting.figures import write_plots  # loads matplotlib

    return write_plots(trainings(groups, labels(groups), axis), page)


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of "report". Raises ValueError for what it does not take."""
    parser = Parser(
        prog="justforward report",
        description="Show any number of runs on one HTML page, beside the published numbers; and as Markdown, CSV and "
        "LaTeX.",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a result file, or a folder that holds some")
    parser.add_argument("--output", default="report.html", help="the page; the other files lie beside it (%(default)s)")
    parser.add_argument("--plots", action="store_true", help="draw the training charts as PNG files too")
    parser.add_argument("--x", choices=tuple(AXES), default="steps", help="what trainings are drawn over (%(default)s)")
    return parser.parse_args(words)
