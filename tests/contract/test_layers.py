"""The shape of the package: imports run one way, the light parts stay light, files stay short."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "justforward"
MODULES = sorted(PACKAGE.rglob("*.py"))
DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")

# A room (or a file at the package's root) may import its own layer and those above it in this list, nowhere else: not
# even inside a function.
LAYERS = [
    {"registry", "noise", "results", "launcher", "compat"},
    {"optim", "tasks", "machine"},
    {"models", "scoring", "command_line"},
    {"planning", "trajectory"},
    {"training"},
    {"auto", "reporting"},
    {"assembly"},
    {"experiment"},
    {"sweep"},
    {"commands", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
HEAVY = {"torch", "transformers", "accelerate", "peft"}
# What works, or answers a mistake, without torch: rooms or single modules.
LIGHT = [
    *["registry", "launcher", "tasks", "noise.reference", "results.files", "reporting", "auto.rules"],
    *["sweep.options", "command_line.job", "command_line.checks", "command_line.parser", "command_line.old_spellings"],
    *["command_line.trainer_fields", "commands.cli", "commands.task", "commands.report"],
]
MOST_LINES = 400


def dotted(path):
    """src/justforward/noise/reference.py -> "noise.reference"; a package's __init__.py -> the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported(path):
    """(absolute dotted name, line) of every import in a file, at any depth; `from a import b` counts as a.b."""
    package = ["justforward", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{prefix}.{alias.name}", node.lineno) for alias in node.names)


def for_type_checkers(path):
    """Lines below `if TYPE_CHECKING:`; nothing there is imported when the program runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {line for node in blocks for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def rooms_by_importer():
    """What each room or file at the package's root imports of the others, wherever in it; `__main__` is a door only."""
    found = {room: set() for room in LEVEL.keys() - {"__main__"}}
    for path in MODULES:
        own = dotted(path).split(".")[0]
        targets = {name.split(".")[1] for name, _ in imported(path) if name.startswith("justforward.")}
        if own in found:
            found[own] |= targets & found.keys() - {own}
    return found


def below(room, direct):
    """All that a room imports, also through others."""
    return direct[room].union(*(below(other, direct) for other in direct[room]))


def wrong_way(path):
    """Imports of a file that point to a higher layer, as "line 3: noise must not import training"."""
    own = dotted(path).split(".")[0]
    for name, line in imported(path):
        root, target = (*name.split("."), "")[:2]
        if root == "justforward" and LEVEL.get(target, -1) > LEVEL[own]:
            yield f"line {line}: {own} must not import {target}"


@pytest.mark.parametrize("path", [path for path in MODULES if path != PACKAGE / "__init__.py"], ids=dotted)
def test_imports_run_one_way(path):
    own = dotted(path).split(".")[0]
    assert own in LEVEL, f"give {own} a place in LAYERS"
    assert not list(wrong_way(path))


@pytest.mark.parametrize("part", LIGHT)
def test_light_parts_name_no_heavy_library(part):
    files = [path for path in MODULES if dotted(path) == part or dotted(path).startswith(f"{part}.")]
    assert files
    for path in files:
        unseen = for_type_checkers(path)
        heavy = [(name, line) for name, line in imported(path) if name.split(".")[0] in HEAVY and line not in unseen]
        assert not heavy, f"{path.name}: {heavy}"


def test_light_parts_load_no_heavy_library():
    """The same, through whatever they import in turn."""
    code = (
        "import importlib, sys\n"
        f"for name in {[*LIGHT, 'command_line.arguments']}: importlib.import_module('justforward.' + name)\n"
        "from justforward import tasks; tasks.get_task('SST2')\n"
        f"found = {HEAVY | {'matplotlib'}} & set(sys.modules); assert not found, found\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_front_door_is_light():
    """`import justforward` comes before everything: its own imports happen inside functions."""
    front = PACKAGE / "__init__.py"
    tree = ast.parse(front.read_text(encoding="utf-8")) if front.exists() else ast.Module([], [])
    unseen = for_type_checkers(front) if front.exists() else set()
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) and node.lineno not in unseen]
    assert not [node for node in top if HEAVY & set(ast.unparse(node).replace(".", " ").split())]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_every_layer_entry_that_exists_is_a_module():
    """A renamed module must not leave its old name behind in LAYERS."""
    existing = {dotted(path).split(".")[0] for path in MODULES}
    assert set(LEVEL) <= existing


def test_a_wrong_import_is_seen_wherever_it_hides(tmp_path, monkeypatch):
    """The reader behind the tests above."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "noise").mkdir()
    path = tmp_path / "noise" / "x.py"
    path.write_text(
        "import torch.nn\nfrom justforward import registry\nimport justforward.training.trainer\n"
        "def f():\n    from . import reference\n    from ..optim import mezo\n    import justforward.commands\n"
    )
    assert [name for name, _ in imported(path)] == [
        *["torch.nn", "justforward.registry", "justforward.training.trainer"],
        *["justforward.noise.reference", "justforward.optim.mezo", "justforward.commands"],
    ]
    wrong = ["line 3: noise must not import training", "line 6: noise must not import optim"]
    assert list(wrong_way(path)) == [*wrong, "line 7: noise must not import commands"]


def test_rooms_stand_in_no_circle():
    """Rooms of one layer may import one another; a CycleError names those that do it both ways."""
    graphlib.TopologicalSorter(rooms_by_importer()).prepare()


def test_the_design_page_lists_the_layers():
    (listed,) = re.findall(r"^## The rooms\n\n```\n(.*?)^```$", DESIGN, re.MULTILINE | re.DOTALL)
    assert [set(line.split(", ")) for line in listed.splitlines()] == LAYERS


def test_the_picture_of_the_rooms_is_what_they_import():
    """An arrow that follows from others (a -> b -> c, so a -> c) is left out."""
    direct = rooms_by_importer()
    needed = {
        room: others - set().union(*(below(other, direct) for other in others)) for room, others in direct.items()
    }
    lines = [f"{room} --> {' & '.join(sorted(others))}" for room, others in needed.items() if others]
    (picture,) = re.findall(r"^```mermaid\ngraph TD\n(.*?)^```$", DESIGN, re.MULTILINE | re.DOTALL)
    shown = {line.strip() for line in picture.splitlines()}
    assert shown == set(lines), "docs/design.md should show\n" + "\n".join(lines)


def test_unit_tests_lie_in_the_rooms_folders():
    tests = ROOT / "tests" / "unit"
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"bench"}
    assert {path.name for path in tests.iterdir() if path.is_dir() and path.name != "__pycache__"} <= rooms
    alone = {f"test_{name}" for name in ("compat", "launcher", "machine", "packaging")}
    assert {path.stem for path in tests.glob("test_*.py")} == alone


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/**/__init__.py")), ids=dotted)
def test_a_room_says_what_is_done_in_it_and_where_to_start(path):
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert "ay import " in said
    assert "Start with `" in said
