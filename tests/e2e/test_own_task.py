"""docs/own-task.md: its files load, its commands run, what it shows is what comes out."""

import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
from support.golden import MODEL

from justforward.commands.cli import main
from justforward.tasks import TASKS, find_task, get_task
from justforward.tasks.metrics import METRICS, Prediction
from justforward.training.rewards import REWARDS, find_reward

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "own-task.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
TASK_FILES = [block for language, block in BLOCKS if language == "toml" and "prompt =" in block]
PYTHON = [block for language, block in BLOCKS if language == "py"]
COMMANDS = [
    words
    for language, block in BLOCKS
    if language == "bash"
    for line in block.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line, comments=True))[:1] == ["justforward"]
]
RUNS = [words[1:] for words in COMMANDS if words[1] != "task"]
# Later words win: the same commands on the tiny model, for three steps.
SMALL = ["--model_name", MODEL, "--use_cpu", "--disable_tqdm", "--report_to", "none"]
FEW_STEPS = ["--max_steps", "3", "--per_device_train_batch_size", "4"]


@pytest.fixture(autouse=True)
def _beside_the_example(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples" / "own_task", tmp_path / "examples" / "own_task")
    monkeypatch.chdir(tmp_path)


def write_rows():
    """The rows that the document shows, under the names that its task files give them; whole files are kept."""
    shown = [block for language, block in BLOCKS if language in ("csv", "jsonl")]
    for name, rows in zip(("tickets.csv", "quiz.jsonl", "capitals.csv"), shown, strict=True):
        whole = Path("examples/own_task") / name
        if whole.exists():
            assert set(rows.splitlines()) <= set(whole.read_text().splitlines())
        Path(name).write_text(whole.read_text() if whole.exists() else rows)


@pytest.mark.parametrize("toml", TASK_FILES, ids=lambda toml: tomllib.loads(toml)["name"])
def test_task_files_load(toml):
    write_rows()
    Path("task.toml").write_text(toml)
    task = find_task("", "task.toml")
    splits = task.load(None)
    for sample in (*splits.train, *splits.validation):
        text = task.verbalize(sample, task.gold(sample))
        assert text.startswith(task.prompt(sample))
        assert task.target(sample) not in (None, ())


def test_the_example_is_the_one_shown():
    assert TASK_FILES[0] == Path("examples/own_task/tickets.toml").read_text()
    assert len(TASK_FILES) == 3


def test_what_check_prints_is_as_shown(capsys):
    (checked,) = [words[1:] for words in COMMANDS if "--num" in words]
    assert main(checked) == 0
    printed = capsys.readouterr().out
    assert printed in [block for language, block in BLOCKS if language == "text"]


def test_an_error_is_as_shown(capsys):
    write_rows()
    Path("tickets.csv").write_text(
        Path("tickets.csv").read_text().replace("bank transfer?,billing", "transfer?,biling")
    )
    lines = Path("tickets.csv").read_text().splitlines()
    number = next(i for i, line in enumerate(lines, start=1) if line.endswith("biling"))
    Path("task.toml").write_text(TASK_FILES[0])
    assert main(["task", "check", "task.toml"]) == 2
    shown = next(block for _, block in BLOCKS if block.startswith("justforward: error"))
    assert capsys.readouterr().err == shown.replace("line 7", f"line {number}")


@pytest.mark.parametrize("words", RUNS, ids=["zero-shot", "icl", "mezo", "regular"])
def test_commands_run(words):
    training = "--trainer" in words
    assert main([*words, *SMALL, *(FEW_STEPS if training else [])]) == 0
    (written,) = Path("result").glob("tickets-tiny-opt-4k*.json")
    result = json.loads(written.read_text())
    assert result["num_eval"] == 12
    assert result.get("train_steps") == (3 if training else None)
    first = json.loads(written.with_name(f"{written.stem}-predictions.jsonl").read_text().splitlines()[0])
    assert first["candidates"] == ["billing", "technical", "other"]


@pytest.mark.parametrize("toml", TASK_FILES[1:], ids=["quiz", "capitals"])
def test_the_other_kinds_train_and_evaluate(toml):
    write_rows()
    Path("task.toml").write_text(toml)
    words = ["--trainer", "zo", "--num_train", "2", "--train_set_seed", "0", "--save_strategy", "no"]
    more = ["--max_new_tokens", "4", "--learning_rate", "1e-4", "--result_file", "r.json"]
    assert main(["--task_file", "task.toml", *words, *more, *SMALL, *FEW_STEPS]) == 0
    assert {"accuracy", "em"} & set(json.loads(Path("r.json").read_text()))


def test_changed_rows_are_another_job(capsys):
    mezo = next(words for words in RUNS if "zo" in words)
    words = [*mezo, *SMALL, *FEW_STEPS, "--save_strategy", "steps", "--save_steps", "2", "--no_eval"]
    assert main(words) == 0
    rows = Path("examples/own_task/tickets.csv")
    whole = rows.read_text()
    rows.write_text(whole.replace("I was charged twice", "I was charged thrice"))
    capsys.readouterr()
    assert main(words) == 2
    assert "holds checkpoints of another job (it differs in task_file)" in capsys.readouterr().err
    rows.write_text(whole)
    assert main(words) == 0


def test_the_python_task_loads(tmp_path):
    Path("headlines.py").write_text(PYTHON[0])
    Path("headlines").mkdir()
    for split in ("train", "validation"):
        Path(f"headlines/{split}.jsonl").write_text('{"title": "Fox found", "clicks": 2000}')
    task = find_task("", "headlines.py")
    (sample,) = task.load(".").train
    assert task.verbalize(sample, task.gold(sample)) == "Headline: FOX FOUND\nPopular? yes"


def test_a_package_adds_tasks_metrics_and_rewards(tmp_path, monkeypatch):
    (project,) = [tomllib.loads(block)["project"] for language, block in BLOCKS if "[project]" in block]
    info = tmp_path / "site" / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (info.parent / "my_package.py").write_text(PYTHON[1])
    monkeypatch.syspath_prepend(info.parent)
    for registry in (TASKS, METRICS, REWARDS):
        monkeypatch.setattr(registry, "_loaders", dict(registry._loaders))
        monkeypatch.setattr(registry, "_discovered", False)
    parity = get_task("Parity")
    assert parity.verbalize(parity.sample({"number": 7}, 0), 1) == "7 is odd"
    predictions = [Prediction("Wien", ("Vienna", "Wien")), Prediction("Lima", ("Quito",))]
    assert METRICS.get("first_letter")(predictions) == 0.5
    assert find_reward("brief", parity)([parity.sample({"number": 7}, 0)], ["odd"]) == [-3.0]
    write_rows()
    Path("task.toml").write_text(TASK_FILES[2].replace('"em"', '"first_letter"'))
    capitals = find_task("", "task.toml")
    (sample, *_) = capitals.load(None).train
    assert find_reward(None, capitals)([sample], ["Valletta"]) == [1.0]
    with pytest.raises(ValueError, match=r"--reward breif: unknown metric or reward \(did you mean 'brief'\?\)"):
        find_reward("breif", parity)
