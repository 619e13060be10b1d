"""What the site has besides the pages of this folder: files of the root, and the command line's own words.

`mkdocs.yml` names this file; its functions are called while the site is built.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from rooms import drawn

from justforward.command_line.parser import build_parser
from justforward.command_line.specs import job_specs
from justforward.command_line.trainer_fields import trainer_specs
from justforward.commands.cli import COMMANDS

ROOT = Path(__file__).parents[1]
MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# File of the checkout -> where it is in the site.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "licence.txt",
    "bench/results/growth.png": "growth.png",
    **{f"examples/{path.name}": f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")},
}


def on_files(files: Files, config: Any) -> Files:
    """Add the files from outside, and the page of the command line."""
    for name, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / name)))
    files.append(File.generated(config, "reference/command-line.md", content=command_line_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that are right in the checkout made right in the site, and graphs drawn."""
    markdown = MERMAID.sub(lambda block: f"<div>{drawn(block[1])}</div>", markdown)
    from_root = page.file.src_uri in ("index.md", "changelog.md")
    for name, uri in OUTSIDE.items():
        markdown = markdown.replace(f"]({name if from_root else '../' + name})", f"]({uri})")
    return markdown.replace("](docs/", "](") if from_root else markdown


def command_line_page() -> str:
    """Every argument and every command, from the parsers themselves."""
    parts = [
        "# Command line",
        "`justforward` and, in a checkout, `python run.py` are the same command. This page is made from the program's "
        "own arguments; `--help` shows the same in a terminal.",
        "Booleans are given as `--name`, `--name True` or `--name False`. Where an argument is given twice, the later "
        "one wins.",
    ]
    for group in build_parser(job_specs(), trainer_specs())._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if shown:
            parts += [f"## {group.title}", "| Argument | Meaning |\n|---|---|\n" + "\n".join(map(_row, shown))]
    for name in COMMANDS.names():
        if name != "run":
            parts += [f"## justforward {name}", f"```text\n{_help_of(name)}\n```"]
    return "\n\n".join(parts) + "\n"


def _row(action: argparse.Action) -> str:
    flags = "<br>".join(f"`{flag}`" for flag in action.option_strings)
    value = f" {_cell(str(action.metavar))}" if action.metavar else ""
    return f"| {flags}{value} | {_cell((action.help or '').replace('%%', '%'))} |"


def _cell(text: str) -> str:
    escaped = html.escape(text, quote=False)
    for mark in ("\\", "|", "*", "_", "`", "[", "]"):
        escaped = escaped.replace(mark, f"&#{ord(mark)};")
    return escaped


def _help_of(command: str) -> str:
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        COMMANDS.get(command)(["--help"])
    return text.getvalue().strip()
