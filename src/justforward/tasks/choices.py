"""Multiple choice: the options of a row, and how its answer says which of them is right."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from justforward.registry import did_you_mean
from justforward.tasks.loading import check_row
from justforward.tasks.own_rows import AnswerReader, Fields, check_not_empty
from justforward.tasks.texts import as_text, comparable, nfc

KINDS = ("index", "number", "letter", "text")
"""How an answer says which choice is right: by its index, from 0; its number, from 1; its letter, from A; its text."""

_UNASKED = ("text", "index")
"""The kinds that are understood without being named, if there is no doubt."""
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\].:]*")
_NUMBER = re.compile(r"-?[0-9]{1,9}")


@dataclass(frozen=True)
class Choices(AnswerReader):
    """The options of a row, in one field that holds a list or in several fields, and the field with the right one.

    kind: of the answer, one of KINDS; None: a text or an index, where only one of these can be meant. may_be_empty:
    fields of choices that may hold nothing, which is then no choice.
    """

    choices: str | tuple[str, ...]
    answer: str
    kind: str | None = None
    may_be_empty: frozenset[str] = frozenset()

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the choices."""
        return (self.choices,) if isinstance(self.choices, str) else self.choices

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of the choices, and that of the answer."""
        return (*self.fields, self.answer)

    def of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The texts to choose from, of a row that was read."""
        return tuple(text for text in self._all_of(row) if text.strip())

    def __call__(self, row: Fields, where: str) -> None:
        """Make the choices texts, and the answer one of them. Raises ValueError where that cannot be."""
        self._read_choices(row, where)
        number = type(row.get(self.answer)) in (int, float)
        check_row(row, {self.answer: type(row[self.answer]) if number else str}, where)
        row[self.answer] = self._chosen(row[self.answer], self._all_of(row), where)

    def check_all(self, rows: Sequence[Fields], where: str) -> None:
        """Raise ValueError where all answers are numbers that may count from 0 or from 1, and nothing tells which."""
        for name in self.fields:
            if not any(name in row for row in rows):
                check_row(rows[0], {name: str}, where)
        if self.kind is not None:
            return
        indices = [index for row in rows if (index := self._unasked_index(row, where)) is not None]
        if indices and min(indices) > 0:
            raise ValueError(
                f"{where}: field '{self.answer}' is a number in {len(indices)} of {len(rows)} rows, from "
                f"{min(indices)} to {max(indices)} and never 0, so they may count the choices from 0 or from 1: say "
                'which in the task file with answer_kind = "index" (from 0) or answer_kind = "number" (from 1)'
            )

    def _unasked_index(self, row: Fields, where: str) -> int | None:
        self._read_choices(row, where)
        readings = self._readings(row[self.answer], self._all_of(row))
        return None if "text" in readings else readings.get("index")

    def _all_of(self, row: Mapping[str, Any]) -> list[str]:
        """All choices, empty ones too: the answer counts these."""
        return list(row[self.choices]) if isinstance(self.choices, str) else [row[name] for name in self.choices]

    def _read_choices(self, row: Fields, where: str) -> None:
        listed = isinstance(self.choices, str)
        for name in self.fields:
            lenient = name in self.may_be_empty
            if lenient and not listed:
                row.setdefault(name, "")
            if name in row and isinstance(row[name], list) == listed:
                texts = ["" if text is None else as_text(text) for text in (row[name] if listed else [row[name]])]
                row[name] = texts if listed else texts[0]
            check_row(row, {name: [str] if listed else str}, where)
            for text in [] if lenient else row[name] if listed else [row[name]]:
                mend = f' (may_be_empty = ["{name}"] in the task file leaves empty choices out)'
                check_not_empty(text, name, where, mend)

    def _chosen(self, value: Any, choices: list[str], where: str) -> str:
        readings = self._readings(value, choices)
        kinds = (self.kind,) if self.kind else _UNASKED
        if self.kind is None and "text" in readings:
            by_text = choices[readings["text"]]
            others = [kind for kind, at in readings.items() if choices[at] != by_text]
            if others:
                keys = " or ".join(f'answer_kind = "{kind}"' for kind in ("text", *others))
                raise ValueError(
                    f"{where}: field '{self.answer}' is {reprlib.repr(value)}, which is a choice and the "
                    f"{' and the '.join(others)} of another: say which is meant with {keys}"
                )
        found = next((readings[kind] for kind in kinds if kind in readings), None)
        if found is None:
            wanted = {
                "text": f"one of the choices {', '.join(reprlib.repr(text) for text in choices if text.strip())}",
                "index": f"an index from 0 to {len(choices) - 1}",
                "number": f"a number from 1 to {len(choices)}",
                "letter": f"the letter of one of the {len(choices)} choices",
            }
            if not all(text.strip() for text in choices):
                wanted = {kind: f"{what} (empty choices left out)" for kind, what in wanted.items()}
            near = did_you_mean(str(value), [text for text in choices if text.strip()])
            mends = "".join(
                f' (answer_kind = "{kind}" in the task file makes it {reprlib.repr(choices[at])})'
                for kind, at in readings.items()
            )
            raise ValueError(
                f"{where}: field '{self.answer}' must be {', or '.join(wanted[kind] for kind in kinds)}, "
                f"not {reprlib.repr(value)}{near}{mends}"
            )
        return choices[found]

    def _readings(self, value: Any, choices: list[str]) -> dict[str, int]:
        """Kind -> the place, from 0, of the choice that this answer names if it is of that kind."""
        text, texts = as_text(value), choices
        if text not in texts:
            text, texts = nfc(text), [nfc(choice) for choice in choices]
        found = {"text": texts.index(text) if text in texts else -1, "letter": self._letter(text.strip())}
        if number := _NUMBER.fullmatch(comparable(text.strip())):
            found |= {"index": int(number[0]), "number": int(number[0]) - 1}
        return {kind: at for kind, at in found.items() if 0 <= at < len(choices) and choices[at].strip()}

    def _letter(self, text: str) -> int:
        """The place of the choice with this letter, -1 if it is none; fields that are called by letters have those."""
        letter = _LETTER.fullmatch(text)
        if letter is None:
            return -1
        names = [] if isinstance(self.choices, str) else [name.upper() for name in self.choices]
        if names and all(len(name) == 1 and name.isalpha() for name in names):
            return names.index(letter[1].upper()) if letter[1].upper() in names else -1
        return ord(letter[1].upper()) - ord("A")
