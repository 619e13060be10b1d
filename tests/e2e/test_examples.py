"""The examples: each is short, runs as a reader runs it, and learns something."""

import ast
import importlib.util
import io
import sys
import tokenize
from pathlib import Path

import pytest
from support.golden import MODEL

FOLDER = Path(__file__).parents[2] / "examples"
SHORT = ("plain_loop", "vision", "black_box", "hf_trainer", "trl_sft")
MOST_LINES = 20
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
QUIET = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "report_to": "none"}


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_lines(source):
    """Lines with code on them, but for imports and docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for t in tokens if t.type not in NO_CODE for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (docstring or isinstance(node, ast.Import | ast.ImportFrom)):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_lines_are_counted_without_imports_and_docstrings():
    assert code_lines('"""A\nB."""\nimport x\n\n# c\na = (\n    1\n)  # d\nif a:\n    x(a)\n') == 5


def test_every_example_but_the_demo_is_here():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SHORT, "demo"}


@pytest.mark.parametrize("name", SHORT)
def test_example_is_short(name):
    assert code_lines((FOLDER / f"{name}.py").read_text(encoding="utf-8")) <= MOST_LINES


def test_plain_loop():
    losses = example("plain_loop").main(MODEL, steps=40, lr=1e-3)
    assert losses[-1] < losses[0] - 0.2


def test_vision():
    assert example("vision").main(steps=500) > 0.5


def test_black_box():
    rewards = example("black_box").main(MODEL, steps=12)
    assert sum(rewards[-4:]) / 4 > rewards[0]


def test_hf_trainer(tmp_path):
    trainer = example("hf_trainer").main(MODEL, str(tmp_path), max_steps=40, learning_rate=1e-3, **QUIET)
    check_learning(trainer)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed")
def test_trl(tmp_path, monkeypatch):
    module = example("trl_sft")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # TRL looks up the module of the Trainer's class
    check_learning(module.main(MODEL, str(tmp_path), max_steps=40, learning_rate=1e-3, **QUIET))


def check_learning(trainer):
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    assert trainer.state.log_history[0]["projected_grad"] != 0
    assert trainer.log_path.exists()
