"""Rows as users have them -> rows as a task's templates take them: texts, known labels, answers that are choices."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from justforward.registry import did_you_mean
from justforward.tasks.loading import check_row

Fields = dict[str, Any]


@dataclass(frozen=True)
class RowReader:
    """Reads rows for one task. Numbers and truth values become text as JSON writes them: 4, 0.5, true.

    renamed: new name -> the column's own; texts: fields that templates name; may_be_empty: those that may hold
    nothing; answer: reads and checks what is to be answered, in place: (row, where).
    """

    texts: tuple[str, ...]
    answer: Callable[[Fields, str], None]
    renamed: Mapping[str, str] = field(default_factory=dict)
    may_be_empty: frozenset[str] = frozenset()

    def __call__(self, row: Any, where: str) -> Fields:
        """The row, read and checked. Raises ValueError, naming `where` and the field."""
        wanted = dict.fromkeys(self.texts, str)
        if not isinstance(row, Mapping):
            check_row(row, wanted, where)
        read = self._rename(row, where)
        for name in self.texts:
            if name in read:
                read[name] = "" if read[name] is None and name in self.may_be_empty else as_text(read[name])
        check_row(read, wanted, where)
        for name in self.texts:
            if name not in self.may_be_empty:
                check_not_empty(read[name], name, where, f' (may_be_empty = ["{name}"] in the task file allows that)')
        self.answer(read, where)
        return read

    def _rename(self, row: Mapping[str, Any], where: str) -> Fields:
        for new, old in self.renamed.items():
            if old not in row:
                known = list(map(str, row))
                raise ValueError(
                    f"{where}: there is no '{old}', which [columns] names '{new}'{did_you_mean(old, known)}; "
                    f"the fields present are: {', '.join(known)}"
                )
        kept = {name: value for name, value in row.items() if name not in self.renamed.values()}
        return kept | {new: row[old] for new, old in self.renamed.items()}


def as_text(value: Any) -> Any:
    """A number or truth value as JSON writes it; anything else as it is, for the checks to judge."""
    plain = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return json.dumps(value) if plain else value


def check_not_empty(text: str, name: str, where: str, mend: str = "") -> None:
    """Raise ValueError, with the `mend`, for a text of white space or nothing."""
    if not text.strip():
        raise ValueError(f"{where}: field '{name}' is empty{mend}")


@dataclass(frozen=True)
class Label:
    """The field that holds the key of an option; keys are compared as text, so that 1 is "1" and true is "true"."""

    name: str
    options: tuple[str, ...]

    def __call__(self, row: Fields, where: str) -> None:
        """Make the label a key. Raises ValueError for an unknown one."""
        if self.name in row:
            row[self.name] = as_text(row[self.name])
        check_row(row, {self.name: self.options}, where)


@dataclass(frozen=True)
class Choices:
    """The options of a row, in one field that holds a list or in several fields, and the field with the right one.

    kind: whether the right one is given as its "index" (from 0) or as its "text"; None: an integer is an index, and a
    text is one of the choices or else an index.
    """

    names: str | tuple[str, ...]
    answer: str
    kind: str | None = None

    def of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The texts to choose from."""
        return tuple(row[self.names] if isinstance(self.names, str) else (row[name] for name in self.names))

    def __call__(self, row: Fields, where: str) -> None:
        """Make the choices texts, and the answer one of them. Raises ValueError where that cannot be."""
        if isinstance(self.names, str):
            if isinstance(row.get(self.names), list):
                row[self.names] = [as_text(choice) for choice in row[self.names]]
            check_row(row, {self.names: [str]}, where)
            for choice in row[self.names]:
                check_not_empty(choice, self.names, where)
        else:
            row.update({name: as_text(row[name]) for name in self.names if name in row})
            check_row(row, dict.fromkeys(self.names, str), where)
            for name in self.names:
                check_not_empty(row[name], name, where)
        wanted = int if type(row.get(self.answer)) is int else str
        check_row(row, {self.answer: wanted}, where)
        row[self.answer] = self._chosen(row[self.answer], self.of(row), where)

    def _chosen(self, value: int | str, choices: tuple[str, ...], where: str) -> str:
        index = int(value) if isinstance(value, int) or (value.isascii() and value.isdigit()) else -1
        by_index = choices[index] if 0 <= index < len(choices) and self.kind != "text" else None
        text = as_text(value) if self.kind == "text" or isinstance(value, str) else None
        by_text = text if text in choices and self.kind != "index" else None
        if by_index is not None and by_text is not None and by_index != by_text:
            raise ValueError(
                f"{where}: field '{self.answer}' is {value!r}, which is a choice and the index of another: "
                'say which is meant with answer_kind = "text" or answer_kind = "index"'
            )
        found = by_text if by_text is not None else by_index
        if found is None:
            texts = f"one of the choices {', '.join(map(reprlib.repr, choices))}"
            indices = f"an index from 0 to {len(choices) - 1}"
            wanted = {"text": texts, "index": indices}.get(self.kind or "", f"{texts}, or {indices}")
            near = did_you_mean(str(value), list(choices))
            raise ValueError(f"{where}: field '{self.answer}' must be {wanted}, not {reprlib.repr(value)}{near}")
        return found


@dataclass(frozen=True)
class Answer:
    """The field with the text to be generated, or a list of all accepted texts, of which the first is shown."""

    name: str

    def __call__(self, row: Fields, where: str) -> None:
        """Make the answer a list of texts. Raises ValueError for one that is empty or no text."""
        given = row.get(self.name)
        if self.name in row and not isinstance(given, list):
            row[self.name] = as_text(given)
            check_row(row, {self.name: str}, where)
            row[self.name] = [row[self.name]]
        elif isinstance(given, list):
            row[self.name] = [as_text(text) for text in given]
        check_row(row, {self.name: [str]}, where)
        for text in row[self.name]:
            check_not_empty(text, self.name, where)
