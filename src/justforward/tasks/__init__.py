"""The tasks: one small file each, found by name.

A new task is one file in this folder (or one entry point of the group "justforward.tasks") that registers a `Task`, or
a function from a subtask's name to a `Task`. A task without code, or in a file elsewhere, is a task file
(`from_file`, docs/own-task.md).

May import `registry`, and neither torch nor transformers. Start with `base`.
"""

from __future__ import annotations

from justforward.tasks.base import TASKS, Sample, Splits, Task, as_conversations, register
from justforward.tasks.from_file import read_task_file
from justforward.tasks.lm_eval_names import PREFIX
from justforward.tasks.lm_eval_task import read_lm_eval

__all__ = ["TASKS", "Sample", "Splits", "Task", "as_conversations", "find_task", "get_task", "names", "register"]


def find_task(name: str, file: str | None = None) -> Task:
    """The task of a task file, or without one the task called `name`. Raises ValueError as those two do."""
    return get_task(name) if file is None else read_task_file(file)


def get_task(name: str) -> Task:
    """The task called `name`, as "TASK" or "TASK__SUBTASK", or "lm_eval:NAME" of an installed lm_eval.

    Raises ValueError for an unknown name, and for a subtask where the task has none.
    """
    if name.startswith(PREFIX):
        return read_lm_eval(name.removeprefix(PREFIX))
    name, _, subtask = name.partition("__")
    found = TASKS.get(name)
    if not isinstance(found, Task):
        return found(subtask or None)
    if subtask:
        raise ValueError(f"task '{name}' has no subtasks: give task_name as '{name}', without '__{subtask}'")
    return found


def names() -> list[str]:
    """All known task names, sorted."""
    return TASKS.names()
