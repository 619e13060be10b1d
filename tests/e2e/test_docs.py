"""The documents hold: Python blocks run, commands parse, files and links exist, tables name what there is.

Pages that are walked run as a whole, from top to bottom in one folder, with the tiny model in place of the page's.
"""

import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.golden import DATA, MODEL

import justforward
from justforward import tasks
from justforward.command_line import old_spellings
from justforward.command_line.arguments import parse
from justforward.commands import doctor, plan, replay, report
from justforward.commands import task as task_command
from justforward.commands.cli import COMMANDS, main
from justforward.models.tuning import TUNERS
from justforward.noise import BACKENDS
from justforward.sweep import options
from justforward.tasks.metrics import METRICS
from justforward.training.objectives import OBJECTIVES
from justforward.training.rewards import REWARDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
ROOMS = {module.name for module in pkgutil.iter_modules(justforward.__path__)}
ENTRY_POINTS = {r._entry_points for r in (tasks.TASKS, METRICS, REWARDS, OBJECTIVES, TUNERS, BACKENDS)}
WALKED = ("own-reward.md", "tutorial.md")
FENCE = re.compile(r"^```(\w*)(?: title=\"([\w.]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN_FILE = re.compile(r'--8<-- "(.+)"\n')
PROGRAMS = (["python", "run.py"], ["justforward"])
# What the reader does once, before a page's commands; nothing of it is a job.
PREPARATIONS = (["source", ".venv/bin/activate"], ["python", "examples/demo.py", "prepare"])
STAND_INS = {"my-model": MODEL, "my-data": DATA, ".cache/demo/model": MODEL, ".cache/demo/data": DATA}
QUIET = ["--use_cpu", "--disable_tqdm", "--report_to", "none"]


def fences(path):
    """The fenced blocks of a document: (line, language, title, code)."""
    text = path.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        yield text.count("\n", 0, block.start()) + 1, *block.groups()


def blocks(language):
    """The fenced blocks of that language: {document and line: code}."""
    return {f"{p.name}:{line}": code for p in DOCUMENTS for line, found, _, code in fences(p) if found == language}


SHELL = blocks("bash")
PYTHON = {place: code for place, code in blocks("python").items() if not SHOWN_FILE.fullmatch(code)}
ALONE = {place: code for place, code in PYTHON.items() if place.split(":")[0] not in WALKED}


def command_lines(code):
    """Commands of a shell block as lists of words: comments gone, continued lines joined."""
    return [words for line in code.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


def check_command(words):
    """Hold one documented command to what it would start; fails for a command that is not known here."""
    settings = [word for word in words if re.match(r"[A-Z_]+=", word)]
    words = words[len(settings) :]
    if words in PREPARATIONS:
        return None
    for program in PROGRAMS:
        if words[: len(program)] == program:
            return check_arguments(words[len(program) :])
    if words[0] == "bash":
        environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1"} | dict(s.split("=", 1) for s in settings)
        ran = subprocess.run([*words[:1], ROOT / words[1], *words[2:]], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        printed = shlex.split(ran.stdout)
        return check_arguments(printed[printed.index(str(ROOT / "run.py")) + 1 :])
    assert words[0] == "make", f"the documents show a command that this test does not know: {shlex.join(words)}"
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(words[1:]) <= set(targets)
    return None


def check_arguments(words):
    """Arguments of run.py are parsed and checked; the folder of data that they name is made where the test runs."""
    if words[0] in ("log", "replay"):
        replay.parse(words[0], words[1:])
        return
    if words[0] == "task":
        task_command.parse(words[1:])
        return
    if "--task_file" in words:
        shutil.copytree(ROOT / "examples", "examples", dirs_exist_ok=True)
    if words[0] == "report":
        report.parse(words[1:])
        return
    if words[0] in ("plan", "doctor"):
        {"plan": plan, "doctor": doctor}[words[0]].parse(words[1:])
        return
    if "--data_dir" in words:
        Path(words[words.index("--data_dir") + 1]).mkdir(parents=True, exist_ok=True)
    if words[0] == "sweep":
        options.parse(words[1:])
        return
    parse(words)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """An empty folder to be in; names that a page registers, and folders that it imports from, are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for registry in (tasks.TASKS, METRICS):
        registry.names()
        monkeypatch.setattr(registry, "_loaders", dict(registry._loaders))


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("place", ALONE)
def test_python_block_runs(place):
    exec(compile(PYTHON[place], place, "exec"), {"__name__": "__main__"})


@pytest.mark.usefixtures("own_folder")
@pytest.mark.parametrize("page", WALKED)
def test_page_runs_from_top_to_bottom(page):
    for line, language, title, code in fences(DOCS / page):
        if title:
            Path(title).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, f"{page}:{line}", "exec"), {"__name__": "__main__"})
        elif language == "bash":
            for words in command_lines(code):
                assert run_command(words) == 0, words


def run_command(words: list[str]) -> int:
    """Run what a page shows, with the tiny model; 0 for what is not ours to run."""
    for program in PROGRAMS:
        if words[: len(program)] == program:
            given = [STAND_INS.get(word) or word for word in words[len(program) :]]
            return main(given + ([] if given[0] in COMMANDS.names() else QUIET))
    return 0


def test_every_example_is_shown():
    shown = {name for path in DOCUMENTS for *_, code in fences(path) for name in SHOWN_FILE.findall(code)}
    assert shown == {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")} - {"examples/demo.py"}


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are written for bash")
@pytest.mark.parametrize("place", SHELL)
def test_commands_are_accepted(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = command_lines(SHELL[place])
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize(
    "line",
    ["make nothing", "python run.py --num_trian 4", "TASK=SST2 bash mezo.sh --zo_eps 0", "TASK=X bash icl.sh", "pip x"],
)
def test_a_wrong_command_is_seen(line, tmp_path, monkeypatch):
    """The check behind the test above."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, ValueError)):
        check_command(*command_lines(line))


def test_result_file_is_as_shown(tmp_path, monkeypatch):
    """The metrics shown in docs/results.md are those of this very job, up to its clock."""
    (shown,) = [json.loads(code) for code in blocks("json").values()]
    monkeypatch.chdir(tmp_path)
    counts = ["--num_train", "24", "--num_dev", "8", "--num_eval", "12", "--train_set_seed", "0", "--max_steps", "4"]
    job = ["--model_name", MODEL, "--data_dir", DATA, "--trainer", "zo", "--train_as_classification", *counts]
    quiet = ["--use_cpu", "--disable_tqdm", "--report_to", "none", "--save_strategy", "no"]
    assert main([*job, *quiet, "--learning_rate", "1e-4", "--result_file", "result.json"]) == 0
    written = json.loads(Path("result.json").read_text())
    assert list(written) == list(shown)
    assert list(written["run"]) == list(shown["run"])
    facts = [name for name in shown if name.startswith("num_") or name in ("train_steps", "forwards", "examples")]
    assert {name: written[name] for name in facts} == {name: shown[name] for name in facts}
    line = json.loads(Path("result-predictions.jsonl").read_text().splitlines()[0])
    assert list(line) == ["id", "candidates", "scores", "predicted", "correct"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_exist(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for name in re.findall(r"`((?:src|tests|docs|examples|bench)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`python -m bench\.(\w+)", text):
        assert (ROOT / "bench" / f"{name}.py").exists() or (ROOT / "bench" / name / "__main__.py").exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_modules_and_what_is_in_them_exist(path):
    """Names in backticks that begin with the package or one of its rooms, and those that the reference is made of."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for name in re.findall(r"`((?:\w+\.)+\w+)`|^::: (\S+)$", text, re.MULTILINE):
        name = "".join(name)
        if name.split(".")[0] in ROOMS and name.split(".")[-1] not in ("py", "md", "log"):
            name = f"justforward.{name}"
        if name.startswith("justforward.") and name not in ENTRY_POINTS:
            pkgutil.resolve_name(name)


def test_modules_that_moved_are_where_the_changelog_says():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    moves = re.findall(r"^ *\| `([\w.]+)` \| (`[\w.]+`(?:, `[\w.]+`)*) \|$", text, re.MULTILINE)
    assert moves
    for name in re.findall(r"[\w.]+", " ".join(places for _, places in moves)):
        pkgutil.resolve_name(f"justforward.{name}")


def test_migration_tells_the_fate_of_every_old_spelling():
    text = (DOCS / "migration.md").read_text(encoding="utf-8")
    fates = (old_spellings.RENAMED, old_spellings.TRANSLATED, old_spellings.IGNORED, old_spellings.REMOVED)
    assert not [name for fate in fates for name in fate if f"`{name}`" not in text]


def test_the_papers_page_names_every_task():
    text = (DOCS / "reproduce.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^`TASK` is one of (.+?);", text, re.MULTILINE)
    assert sorted(listed.split(", ")) == tasks.names()


def test_plug_ins_go_by_the_names_that_they_always_had():
    kinds = ("tasks", "metrics", "rewards", "objectives", "tuners", "noise")
    assert {f"justforward.{kind}" for kind in kinds} == ENTRY_POINTS


def test_every_dependency_is_justified():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[<>=]", requirement)[0] for group in groups for requirement in group}
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| ([^|]+) \|", text.split("## Dependencies")[1].split("\n## ")[0], re.MULTILINE)
    justified = {name for row in table for name in re.findall(r"[\w-]+", row)}
    assert names <= justified
