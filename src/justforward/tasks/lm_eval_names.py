"""Finding a task of lm_eval (EleutherAI's harness): by its name, in a file, or in a folder of task files.

lm_eval is no dependency of ours: it is imported when such a task is named, and never before.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from justforward.registry import did_you_mean
from justforward.tasks.hub import reason

PREFIX = "lm_eval:"
"""Of --task_name."""
_MOST_NAMED = 5


def find_in_lm_eval(name: str) -> Any:
    """lm_eval's own object of the task, its data set loaded.

    name: of a task that lm_eval brings; a task file (.yaml); a folder and a name in it ("tasks/NAME"), or a folder that
    holds one task ("tasks/"). Raises ValueError, one line, for what is no single task, and for what cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(f"{PREFIX}{name} needs lm_eval, which is not installed: pip install 'justforward[lm_eval]'")
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        _check_file(name, path)
        return _load(name, _manager(None), str(path))
    if "/" in name and path.is_dir():
        return _load(name, *_only_one(name, path))
    if "/" in name and path.parent.is_dir():
        return _load(name, *_named(name, _manager(path.parent), path.name))
    return _load(name, *_named(name, _installed(), name))


def _manager(folder: Path | None) -> Any:
    """What lm_eval finds in a folder."""
    include = None if folder is None else str(folder)
    return importlib.import_module("lm_eval.tasks").TaskManager(include_path=include, include_defaults=False)


@functools.cache
def _installed() -> Any:
    """What lm_eval brings itself: it reads thousands of files to know."""
    return importlib.import_module("lm_eval.tasks").TaskManager()


def _only_one(name: str, folder: Path) -> tuple[Any, str]:
    manager = _manager(folder)
    found = manager.all_subtasks
    if len(found) != 1:
        which = f"holds {len(found)} tasks: name one of them, as {PREFIX}{folder}/{found[0]}" if found else "holds none"
        raise ValueError(f"{PREFIX}{name}: the folder {which} ({_listed(found) or 'no .yaml file has a task'})")
    return manager, found[0]


def _named(name: str, manager: Any, wanted: str) -> tuple[Any, str]:
    entry = manager.task_index.get(wanted)
    if entry is None:
        near = did_you_mean(wanted, manager.all_subtasks)
        raise ValueError(
            f"{PREFIX}{name}: lm_eval knows no task '{wanted}'{near}; files of your own: {PREFIX}FILE.yaml"
        )
    if wanted not in manager.all_subtasks:
        members = sorted(entry.tags) if wanted in manager.all_tags else _members((entry.cfg or {}).get("task"))
        raise _several(name, members)
    return manager, wanted


def _check_file(name: str, path: Path) -> None:
    """Raise ValueError for a file that is not there, is not YAML, or holds no single task."""
    import yaml  # lm_eval's own dependency

    if not path.is_file():
        raise ValueError(f"{PREFIX}{name}: there is no such file")
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))  # what `!function` names is not run
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{PREFIX}{name}: not YAML ({reason(error)})") from None
    pairs = root.value if isinstance(root, yaml.MappingNode) else []
    keys = {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}
    if "group" in keys:
        listed = keys["task"].value if isinstance(keys.get("task"), yaml.SequenceNode) else []
        raise _several(name, [node.value for node in listed if isinstance(node, yaml.ScalarNode)])
    if "task" not in keys:
        raise ValueError(f"{PREFIX}{name}: no task of lm_eval: the file has no key 'task' with the task's name")


def _members(listed: Any) -> list[str]:
    names = [item.get("task") or item.get("group") if isinstance(item, Mapping) else item for item in listed or []]
    return [str(name) for name in names if name]


def _several(name: str, members: Sequence[str]) -> ValueError:
    return ValueError(f"{PREFIX}{name} is a group of tasks: name one of them ({_listed(members) or 'it lists none'})")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _load(name: str, manager: Any, spec: str) -> Any:
    with one_line(name):
        tasks = manager.load(spec)["tasks"]
        (task,) = tasks.values()
    return task


class NotTaken(ValueError):
    """What is wrong with a row or a task, as the rest of a line that names it."""


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Raises ValueError, one line, whatever lm_eval and the functions of its tasks raise inside."""
    try:
        yield
    except NotTaken as error:
        raise ValueError(f"{PREFIX}{name}: {error}") from None
    except ConnectionError as error:
        raise ValueError(
            f"{PREFIX}{name}: its rows are on the Hugging Face hub, which cannot be reached ({reason(error)}): take a "
            "machine with network, or a task file with dataset_path: json and data_files of your own"
        ) from error
    except Exception as error:  # any function of any task
        raise ValueError(f"{PREFIX}{name}: lm_eval cannot read it ({type(error).__name__}: {reason(error)})") from error
