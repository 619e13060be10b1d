"""Rows of a task: from JSON-lines files of the user's own, or from the Hugging Face hub.

Both give rows in the hub's format, and both are checked in the same way, so that a wrong row is one clear line before
training and not a stack trace in the middle of it.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from justforward.registry import did_you_mean
from justforward.tasks.hub import Hub, hub_rows
from justforward.tasks.texts import Unreadable, check_readable

Row = Mapping[str, Any]

SPLITS = ("train", "validation")

_TYPE_NAMES = {str: "a string", int: "an integer", bool: "true or false", float: "a number", dict: "an object"}


def load_rows(name: str, hub: Hub | None, fields: Row, data_dir: str | None) -> tuple[list[Row], list[Row]]:
    """The checked (train, validation) rows of the task `name`. Raises ValueError, one line, for any user error."""

    def read(row: Any, place: str) -> Row:
        check_row(row, fields, place)
        return row

    if data_dir is None:
        files = f"--data_dir DIR with DIR/{name}/train.jsonl and DIR/{name}/validation.jsonl"
        if hub is None:
            raise ValueError(f"{name}: it has no data set on the hub: give {files}")
        sources = hub_rows(name, hub, SPLITS, f"without the hub, give {files}")
    else:
        sources = [(str(path), read_jsonl(path)) for path in _split_files(name, data_dir)]
    train, validation = (read_all(where, rows, read) for where, rows in sources)
    return train, validation


def read_all(
    where: str, rows: Iterable[tuple[int, Any]], read: Callable[[Any, str], Row], unit: str = "row"
) -> list[Row]:
    """`read(row, place)` of all numbered rows, place being "`where`, `unit` 3".

    Raises ValueError for a row that holds what cannot be read, and if there are none.
    """
    found = []
    for number, row in rows:
        place = f"{where}, {unit} {number}"
        check_readable(row, place)
        found.append(read(row, place))
    if not found:
        raise ValueError(f"{where}: there are no rows in it")
    return found


def check_row(row: Any, fields: Row, where: str, parent: str = "") -> None:
    """Raise ValueError, naming `where` and the field, unless `row` has all `fields`.

    `fields` maps a name to what its value must be: a type; a tuple of the values allowed; `[type]` for a list of at
    least one; or a mapping of this same kind for a nested object.
    """
    if not isinstance(row, Mapping):
        what = f"field '{parent[:-1]}'" if parent else "a row"
        raise ValueError(f"{where}: {what} must be a JSON object with {', '.join(fields)}, not {reprlib.repr(row)}")
    for name, wanted in fields.items():
        if name not in row:
            present = ", ".join(map(str, row)) or "none"
            raise ValueError(
                f"{where}: field '{parent}{name}' is missing{did_you_mean(name, list(map(str, row)))}; "
                f"the fields present are: {present}"
            )
        if isinstance(wanted, Mapping):
            check_row(row[name], wanted, where, f"{parent}{name}.")
        elif not _matches(row[name], wanted):
            raise ValueError(
                f"{where}: field '{parent}{name}' must be {_described(wanted)}, not {reprlib.repr(row[name])}"
                + _nearest(row[name], wanted)
            )


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, tuple):
        return any(type(value) is type(allowed) and value == allowed for allowed in wanted)
    if isinstance(wanted, list):
        return isinstance(value, list) and len(value) > 0 and all(_matches(item, wanted[0]) for item in value)
    # Not isinstance: true is no integer here, though Python says so.
    return type(value) is wanted


def _described(wanted: Any) -> str:
    if isinstance(wanted, tuple):
        return f"one of {', '.join(map(repr, wanted))}"
    if isinstance(wanted, list):
        return f"a list of at least one entry, each {_described(wanted[0])}"
    return _TYPE_NAMES[wanted]


def _nearest(value: Any, wanted: Any) -> str:
    if not (isinstance(value, str) and isinstance(wanted, tuple)):
        return ""
    return did_you_mean(value, [allowed for allowed in wanted if isinstance(allowed, str)])


def _split_files(name: str, data_dir: str) -> list[Path]:
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise ValueError(f"data_dir {data_dir}: no such directory")
    files = [root / name / f"{split}.jsonl" for split in SPLITS]
    for path in files:
        if not path.is_file():
            wanted = " and ".join(f"{name}/{file.name}" for file in files)
            raise ValueError(f"{path}: no such file; {name} needs {wanted} in data_dir")
    return files


def read_jsonl(path: Path, unit: str = "row") -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line that is not blank. Raises ValueError for what is not JSON in UTF-8."""
    with path.open(encoding="utf-8-sig") as lines, in_utf8(path):
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, parse_json(line.rstrip(), f"{path}, {unit} {number}")


@contextmanager
def in_utf8(path: Path) -> Iterator[None]:
    """Raises ValueError, with the mend, where what is read inside is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; save the file as UTF-8") from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; `Unreadable` where it holds an integer that is too long.

    Raises ValueError for what is not JSON, or an object with a field given twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{where}: field '{twice}' is given twice")
        return made

    try:
        return json.loads(text, object_pairs_hook=once, parse_int=_integer)
    except json.JSONDecodeError as error:
        line = f" of line {error.lineno}" if error.lineno > 1 else ""
        raise ValueError(f"{where}: not valid JSON: {error.msg} at column {error.colno}{line}") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid JSON: too deeply nested") from None


def _integer(digits: str) -> int | Unreadable:
    try:
        return int(digits)
    except ValueError:  # Python's limit, which keeps the time to read one in bounds
        return Unreadable(f"an integer of {len(digits)} digits, which as a text would stand in quotes")
