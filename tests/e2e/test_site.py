"""The site builds without a warning, has a page for all there is, and asks no other server for anything."""

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from justforward.command_line.old_spellings import RENAMED
from justforward.command_line.specs import job_specs
from justforward.command_line.trainer_fields import trainer_specs
from justforward.commands.cli import COMMANDS

ROOT = Path(__file__).parents[2]
TOOLS = ("mkdocs", "material", "mkdocstrings")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(tool) is None for tool in TOOLS), reason="the extra `docs` is not installed"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    ran = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "WARNING" not in ran.stdout + ran.stderr
    return folder


def test_every_page_is_in_the_site(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    assert {path for path in pages if not (site / path).exists()} == set()
    assert (site / "index.html").exists()


def test_the_command_line_is_whole(site):
    page = html.unescape(re.sub(r"<[^>]+>", "", (site / "reference/command-line.html").read_text(encoding="utf-8")))
    names = [spec.name for spec in (*job_specs(), *trainer_specs()) if spec.name not in RENAMED]
    assert [name for name in names if f"--{name}" not in page] == []
    assert [name for name in COMMANDS.names() if name != "run" and f"usage: justforward {name}" not in page] == []


def test_the_reference_has_the_public_names(site):
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    for name in (
        "optim.MeZO",
        "optim.MeZO.estimate",
        "training.trainer.MeZOMixin",
        "tasks.Task",
        "scoring.ScoringEngine",
        "load",
    ):
        assert f'id="justforward.{name}"' in pages


def test_the_rooms_are_drawn(site):
    page = (site / "design.html").read_text(encoding="utf-8")
    picture = page[page.index("<svg viewBox") :]
    picture = picture[: picture.index("</svg>")]
    assert {"registry", "commands"} <= set(re.findall(r"<text [^>]+>(\w+)</text>", picture))
    assert "--&gt;" not in page
    assert (site / "images" / "demo.svg").exists()


def test_nothing_comes_from_another_server(site):
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)[^>]+src=[\"\']?(?:https?:)?//[^>]*>", text)
        linked = re.findall(r"<link[^>]+href=[\"\']?(?:https?:)?//[^>]*>", text)
        assert fetched + linked == [], path
