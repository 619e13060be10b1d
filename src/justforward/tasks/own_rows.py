"""Rows as users have them -> rows as a task's templates take them: texts, known labels, answers that are choices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from justforward.registry import did_you_mean
from justforward.tasks.loading import check_row
from justforward.tasks.texts import as_text, comparable, nfc

Fields = dict[str, Any]


class AnswerReader(ABC):
    """Reads what is to be answered out of a row."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The fields that it reads; a dotted name reaches into a field."""

    @abstractmethod
    def __call__(self, row: Fields, where: str) -> None:
        """Read and check these fields in place. Raises ValueError, naming `where` and the field."""

    def check_all(self, rows: Sequence[Fields], where: str) -> None:
        """Raise ValueError for what only all rows together show."""
        return

    def inside(self, name: str, value: Mapping[str, Any]) -> str:
        """What to give in the task file where the field `name` is an object."""
        paths = " or ".join(f"'{name}.{part}'" for part in value)
        return f"{paths} in the task file (for a template under [columns])"


@dataclass(frozen=True)
class RowReader:
    """Reads rows for one task. Numbers and truth values become text as JSON writes them: 4, 0.5, true.

    renamed: new name -> the column's own; texts: fields that templates name; may_be_empty: those that may hold
    nothing; answer: what is to be answered.
    """

    texts: tuple[str, ...]
    answer: AnswerReader
    renamed: Mapping[str, str] = field(default_factory=dict)
    may_be_empty: frozenset[str] = frozenset()

    def __call__(self, row: Any, where: str) -> Fields:
        """The row, read and checked. Raises ValueError, naming `where` and the field."""
        wanted = dict.fromkeys(self.texts, str)
        if not isinstance(row, Mapping):
            check_row(row, wanted, where)
        read = self._fields(row, where)
        for name in self.texts:
            if name in read:
                read[name] = "" if read[name] is None and name in self.may_be_empty else as_text(read[name])
        check_row(read, wanted, where)
        for name in self.texts:
            if name not in self.may_be_empty:
                check_not_empty(read[name], name, where, f' (may_be_empty = ["{name}"] in the task file allows that)')
        self.answer(read, where)
        return read

    def check_all(self, rows: Sequence[Any], where: str) -> None:
        """Raise ValueError for what only all rows together show, of rows that were read one by one."""
        self.answer.check_all([self._fields(row, where) for row in rows], where)

    def _fields(self, row: Mapping[str, Any], where: str) -> Fields:
        """All fields by the names that the task file gives them."""
        given = {nfc(name): value for name, value in row.items()}
        if len(given) < len(row):
            raise ValueError(f"{where}: two fields have the same name: {', '.join(row)}")
        read = {name: value for name, value in given.items() if name not in self.renamed.values()}
        for new, old in self.renamed.items():
            try:
                read[new] = reach(given, old)
            except KeyError:
                raise ValueError(
                    f"{where}: there is no '{old}', which [columns] names '{new}'{_nearest(old, given)}"
                ) from None
        for name in self.answer.names:
            if name not in read and "." in name:
                try:
                    read[name] = reach(read, name)
                except KeyError:
                    if name in self.may_be_empty:
                        continue
                    raise ValueError(f"{where}: field '{name}' is missing{_nearest(name, read)}") from None
        for name in (*self.texts, *self.answer.names):
            if isinstance(inner := read.get(name), Mapping):
                raise ValueError(f"{where}: field '{name}' is an object: give {self.answer.inside(name, inner)}")
        return read


def reach(value: Any, path: str) -> Any:
    """What stands at a dotted path below `value`; from a list on the way, the list of what its entries have there.

    Raises KeyError where there is nothing of that name.
    """
    if isinstance(value, list):
        return [reach(entry, path) for entry in value]
    if not isinstance(value, Mapping):
        raise KeyError(path)
    if path in value:
        return value[path]
    first, dot, rest = path.partition(".")
    return reach(value[first], rest) if dot else value[path]


def _nearest(name: str, row: Fields) -> str:
    """What `name` may have meant: a field, or where it is dotted what is in one."""
    known = list(row)
    if "." in name:
        for outer, value in row.items():
            entry = value[0] if isinstance(value, list) and value else value
            known += [f"{outer}.{inner}" for inner in entry] if isinstance(entry, Mapping) else []
    return f"{did_you_mean(name, known)}; the fields present are: {', '.join(known)}"


def check_not_empty(text: str, name: str, where: str, mend: str = "") -> None:
    """Raise ValueError, with the `mend`, for a text of white space or nothing."""
    if not text.strip():
        raise ValueError(f"{where}: field '{name}' is empty{mend}")


@dataclass(frozen=True)
class Label(AnswerReader):
    """The field that holds the key of an option.

    Keys are compared as text, so that 1 and 1.0 are "1" and true is "true", in the composed form of Unicode.
    """

    name: str
    options: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The field of the label."""
        return (self.name,)

    def __call__(self, row: Fields, where: str) -> None:
        """Make the label a key. Raises ValueError for an unknown one."""
        label = as_text(row.get(self.name))
        if isinstance(label, str):
            keys = {comparable(option): option for option in self.options}
            row[self.name] = keys.get(comparable(label), label)
        check_row(row, {self.name: self.options}, where)


@dataclass(frozen=True)
class Answer(AnswerReader):
    """The field with the text to be generated, or a list of all accepted texts, of which the first is shown."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        """The field of the answer."""
        return (self.name,)

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
