"""A task of the user's own, from a TOML file or a Python file; and a digest that pins what it trains on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from justforward.tasks.base import TASKS, Sample, Splits, Task
from justforward.tasks.toml_task import read_toml


def read_task_file(file: str) -> Task:
    """The task of a TOML file, or the one that a Python file registers (which is run).

    Raises ValueError, one line that names the file and the place in it.
    """
    path = Path(file).expanduser()
    readers = {".toml": read_toml, ".py": read_python}
    if path.suffix not in readers:
        raise ValueError(f"{path}: a task file ends with .toml or .py")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    return readers[path.suffix](path)


def read_python(path: Path) -> Task:
    """Run a Python file; returns the one Task that it registers."""
    found = TASKS.collect(lambda: _run(path))
    if len(found) != 1:
        names = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{path}: must register one task with justforward.tasks.register; it registers: {names}")
    (task,) = found.values()
    if not isinstance(task, Task):
        raise ValueError(f"{path}: must register a Task, not {task!r}")
    return task


def digest(task: Task, samples: Sequence[Sample]) -> str:
    """A short name for all that a training on these samples takes from the task: texts, right answers, the metric."""
    made = hashlib.sha256(
        json.dumps(
            [task.metric, task.generation, *([True] if task.markup else []), *([task.system] if task.chat else [])]
        ).encode()
    )
    for sample in samples if not task.is_whole else ():
        answers = sample.correct if sample.candidates is None else [*sample.candidates, task.gold(sample)]
        texts = [task.verbalize(sample, answer) for answer in answers]
        made.update(json.dumps([task.prompt(sample), texts, task.target(sample)], default=str).encode())
    if task.is_whole:
        rows = [task.text(s.data) if task.text is not None else task.turns(s.data) for s in samples]  # type: ignore[misc]
        made.update(json.dumps([rows, task.all_turns, task.splits_long]).encode())
    return f"sha256:{made.hexdigest()[:32]}"


def pinned(own: Mapping[str, Any], task: Task, splits: Splits) -> dict[str, Any]:
    """A job's own arguments, with what is in its task file and data in place of the file's name.

    A harness's task has one too: what is behind its name is not ours to keep as it is.
    """
    if task.harness is not None:
        return {**own, "task_file": task.harness.fingerprint()}
    if own["task_file"] is None:
        return dict(own)
    return {**own, "task_file": digest(task, splits.train)}


def _run(path: Path) -> None:
    name = f"justforward_task_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and the like look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path}{_line(error, path)}: {type(error).__name__}: {error}") from error


def _line(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f", line {lines[-1]}" if lines else ""
