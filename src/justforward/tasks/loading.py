"""Rows of a task: from JSON-lines files of the user's own, or from the Hugging Face hub.

Both give rows in the hub's format, and both are checked in the same way, so that a wrong row is one clear line before
training and not a stack trace in the middle of it.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

SPLITS = ("train", "validation")

_TYPE_NAMES = {str: "a string", int: "an integer", bool: "true or false", float: "a number"}


def load_rows(name: str, hub: tuple[str, str | None], fields: Row, data_dir: str | None) -> tuple[list[Row], list[Row]]:
    """The checked (train, validation) rows of the task `name`. Raises ValueError, one line, for any user error."""
    if data_dir is None:
        dataset = "/".join(part for part in hub if part)
        sources = [(f"{dataset} {split}", enumerate(rows, start=1)) for split, rows in _hub_splits(name, hub)]
    else:
        sources = [(str(path), _read_jsonl(path)) for path in _split_files(name, data_dir)]
    train, validation = (_checked(where, rows, fields) for where, rows in sources)
    return train, validation


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
            raise ValueError(f"{where}: field '{parent}{name}' is missing; the fields present are: {present}")
        if isinstance(wanted, Mapping):
            check_row(row[name], wanted, where, f"{parent}{name}.")
        elif not _matches(row[name], wanted):
            raise ValueError(
                f"{where}: field '{parent}{name}' must be {_described(wanted)}, not {reprlib.repr(row[name])}"
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


def _checked(where: str, rows: Iterable[tuple[int, Any]], fields: Row) -> list[Row]:
    checked = []
    for number, row in rows:
        check_row(row, fields, f"{where}, row {number}")
        checked.append(row)
    if not checked:
        raise ValueError(f"{where}: there are no rows in it")
    return checked


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


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line that is not blank."""
    with path.open(encoding="utf-8-sig") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parsed(line, f"{path}, row {number}")
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not UTF-8 text; save the file as UTF-8") from None


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from None


def _hub_splits(name: str, hub: tuple[str, str | None]) -> list[tuple[str, Iterable[Any]]]:
    import datasets  # heavy, and not needed with files of one's own

    try:
        found: Any = datasets.load_dataset(*hub, split=list(SPLITS))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{name}: cannot reach {hub[0]} on the Hugging Face hub ({reason}); without the hub, "
            f"give --data_dir DIR with DIR/{name}/train.jsonl and DIR/{name}/validation.jsonl"
        ) from error
    return list(zip(SPLITS, found, strict=True))
