"""What the package says of itself agrees with what it is; nothing is built."""

import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import justforward

ROOT = Path(__file__).parents[2]
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIGURATION["project"]
SOURCES = ROOT / "src" / "justforward"


def lines_of(path):
    return (ROOT / path).read_text(encoding="utf-8").splitlines()


def test_python_versions_agree():
    required = SpecifierSet(PROJECT["requires-python"])
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r":: Python :: \d\.\d+$", c)]
    assert named
    assert all(version in required for version in named)
    least = PROJECT["requires-python"].removeprefix(">=")
    assert least in named
    assert CONFIGURATION["tool"]["ruff"]["target-version"] == f"py{least.replace('.', '')}"
    assert f"Python {least} or later" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_typed_and_its_other_data_are_packed():
    assert (SOURCES / "py.typed").is_file()
    patterns = CONFIGURATION["tool"]["setuptools"]["package-data"]["justforward"]
    packed = {path for pattern in patterns for path in SOURCES.glob(pattern)}
    data = {
        path for path in SOURCES.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".nbi", ".nbc")
    }
    assert data == packed


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in SOURCES.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_a_command_is_there(name):
    module, function = PROJECT["scripts"][name].split(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_licence_is_there():
    assert PROJECT["license"] == "Apache-2.0"
    assert all("Apache License" in (ROOT / name).read_text(encoding="utf-8") for name in PROJECT["license-files"])
    assert not [c for c in PROJECT["classifiers"] if c.startswith("License")]  # the expression says it


def test_the_version_is_the_changelogs_or_to_come():
    released = [line for line in lines_of("CHANGELOG.md") if line.startswith("## ")]
    assert released[0] == "## Unreleased"
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", PROJECT["version"])
    assert all(PROJECT["version"] in line for line in released[1:2])
    assert not hasattr(justforward, "__version__")  # it stands in one place


def test_pins_satisfy_what_is_asked_for():
    pinned = dict(line.split("==") for line in lines_of("constraints.txt") if "==" in line)
    folded = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in (Requirement(text) for group in groups for text in group):
        version = folded.get(requirement.name.lower().replace("_", "-"))
        assert version is None or requirement.specifier.contains(version), requirement
    always = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert always <= set(folded)


def test_the_sources_hold_what_the_tests_read():
    """Everything that is kept under the tests' folders, and what stands beside them, is in the source package."""
    patterns: dict[str, list[str]] = {}
    for line in lines_of("MANIFEST.in"):
        kind, *words = line.split()
        if kind == "recursive-include":
            patterns[words[0]] = words[1:]
        elif kind == "include":
            patterns["."] = words
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a checkout")
    for name in map(Path, listed.stdout.splitlines()):
        folder = name.parts[0] if name.parts[0] in patterns else "."
        if folder != "." and name.parts[:2] != ("bench", "results"):
            assert any(name.match(pattern) for pattern in patterns[folder]), name
    for name in ("mezo.sh", "icl.sh", "run.py", "Makefile", "constraints.txt"):
        assert any(Path(name).match(pattern) for pattern in patterns["."]), name
