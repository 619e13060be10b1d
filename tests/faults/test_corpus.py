"""What people really fed such programs, a folder per case: the right value, or one line that says what is wrong.

A case is a folder with `case.toml`, the input files, and where models are needed `build.py`, which makes them in the
folder that it is run in (`support.making` has the makers). The folder is copied, and each `[[run]]` is given to the
real command line there, in this process:

    fault = "what went wrong, in one line"

    [[run]]
    command = "task check q.toml --num 0"  # {golden}, {data}: the golden model and rows
    exit = 0                               # 2: the last line of stderr is the error
    says = ["4 rows for training"]         # in stdout or stderr
    silent = ["nan"]                       # not in them
    absent = ["o.json"]                    # files that are not written

    [run.result]                                # a result file: "o.json" holds accuracy 0.5
    "o.json" = {accuracy = 0.5}
    [run.predicted]                             # a predictions file: the first lines' answers
    "o-predictions.jsonl" = ["Paris"]
    [run.scores]                                # the first lines' scores, to 1e-3
    "o-predictions.jsonl" = [[-1.0, -2.0]]
"""

from __future__ import annotations

import json
import logging
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.golden import DATA, MODEL

from justforward.commands.cli import main

CASES = sorted(path.parent for path in Path(__file__).parent.glob("*/case.toml"))
KEYS = {"command", "exit", "says", "silent", "absent", "result", "predicted", "scores"}


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder, tmp_path, monkeypatch, capfd):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    if Path("build.py").exists():
        runpy.run_path("build.py")
    case = tomllib.loads(Path("case.toml").read_text(encoding="utf-8"))
    assert case["fault"]
    for handler in logging.getLogger("datasets").handlers:  # it keeps the stderr of the test that came first
        if isinstance(handler, logging.StreamHandler):
            handler.stream = sys.stderr
    for run in case["run"]:
        assert run.keys() <= KEYS
        capfd.readouterr()
        code = main(shlex.split(run["command"].format(golden=MODEL, data=DATA)))
        check(run, code, *capfd.readouterr())


def check(run: dict[str, Any], code: int, out: str, err: str) -> None:
    """Hold a run to what its case says."""
    shown = f"$ justforward {run['command']}\n{out}{err}"
    assert code == run.get("exit", 0), shown
    if code == 2:
        assert [line.startswith("justforward: error: ") for line in err.splitlines()][-1:] == [True], shown
        assert "Traceback" not in err, shown
    for text in run.get("says", []):
        assert text in out + err, shown
    for text in run.get("silent", []):
        assert text not in out + err, shown
    for name in run.get("absent", []):
        assert not Path(name).exists(), shown
    for name, expected in run.get("result", {}).items():
        found = json.loads(Path(name).read_text(encoding="utf-8"))
        assert {key: found.get(key) for key in expected} == pytest.approx(expected), shown
    for name, expected in run.get("predicted", {}).items():
        assert [line["predicted"] for line in lines(name)][: len(expected)] == expected, shown
    for name, expected in run.get("scores", {}).items():
        for line, scores in zip(lines(name), expected, strict=False):
            assert line["scores"] == pytest.approx(scores, abs=1e-3), shown


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def test_there_are_cases():
    assert CASES
