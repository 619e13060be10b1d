"""Multiple choice: the options of a row, and how its answer says which of them is right."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from justforward.registry import did_you_mean
from justforward.tasks.loading import check_row
from justforward.tasks.own_rows import AnswerReader, Fields, check_not_empty, reach
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
    fields of choices that may hold nothing, which is then no choice. labels: the field with a list of what the row
    calls its choices, where the answer is one of these.
    """

    choices: str | tuple[str, ...]
    answer: str
    kind: str | None = None
    may_be_empty: frozenset[str] = frozenset()
    labels: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the choices."""
        return (self.choices,) if isinstance(self.choices, str) else self.choices

    @property
    def names(self) -> tuple[str, ...]:
        """The fields of the choices, that of the answer, and that of the labels."""
        return (*self.fields, self.answer, *([] if self.labels is None else [self.labels]))

    def of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The texts to choose from, of a row that was read."""
        return tuple(text for text in self._all_of(row) if text.strip())

    def __call__(self, row: Fields, where: str) -> None:
        """Make the choices texts, and the answer one of them. Raises ValueError where that cannot be."""
        self._read_choices(row, where)
        plain = type(row.get(self.answer)) in (int, float, bool)
        check_row(row, {self.answer: type(row[self.answer]) if plain else str}, where)
        if self.labels is not None:
            self._read_labels(row, self.labels, where)
        row[self.answer] = self._chosen(row, self._all_of(row), where)

    def inside(self, name: str, value: Mapping[str, Any]) -> str:
        """What to give where a field is an object; one of a text per choice is all of them."""
        if name == self.choices and not any(isinstance(part, (list, Mapping)) for part in value.values()):
            paths = ", ".join(f'"{name}.{part}"' for part in value)
            return f"choices = [{paths}] in the task file"
        return super().inside(name, value)

    def check_all(self, rows: Sequence[Fields], where: str) -> None:
        """Raise ValueError where all answers are numbers that may count from 0 or from 1, and nothing tells which."""
        for name in self.fields:
            if not any(name in row for row in rows):
                check_row(rows[0], {name: str}, where)
        if self.kind is not None or self.labels is not None:
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

    def _read_labels(self, row: Fields, name: str, where: str) -> None:
        if isinstance(row.get(name), list):
            row[name] = [as_text(label) for label in row[name]]
        check_row(row, {name: [str]}, where)
        if len(row[name]) != (count := len(self._all_of(row))):
            raise ValueError(f"{where}: field '{name}' holds {len(row[name])} labels, and there are {count} choices")
        for label in row[name]:
            if row[name].count(label) > 1:
                raise ValueError(f"{where}: field '{name}' gives the label {reprlib.repr(label)} twice")

    def _labels_of(self, row: Fields, count: int) -> tuple[str, list[str]] | None:
        """A field with labels of these choices, and the labels; unless it was named, one beside the choices."""
        if self.labels is not None:
            return self.labels, row[self.labels]
        outer = self.choices.rpartition(".")[0] if isinstance(self.choices, str) else ""
        for name in [f"{outer}.label", f"{outer}.labels"] if outer else []:
            try:
                given = reach(row, name)
            except KeyError:
                continue
            labels = [as_text(label) for label in given] if isinstance(given, list) else []
            if len(labels) == count and all(isinstance(label, str) for label in labels):
                return name, labels
        return None

    def _chosen(self, row: Fields, choices: list[str], where: str) -> str:
        labels = self._labels_of(row, len(choices))
        readings = self._readings(row[self.answer], choices, labels[1] if labels else [])
        kind = next((kind for kind in self._kinds if kind in readings), None)
        if kind is None:
            raise ValueError(
                f"{where}: field '{self.answer}' {self._refusal(row[self.answer], choices, readings, labels)}"
            )
        others = [
            at for at in self._rivals(kind) if at in readings and choices[readings[at]] != choices[readings[kind]]
        ]
        if others:
            keys = " or ".join(self._key(at, labels) for at in (kind, *others) if at != self.kind)
            raise ValueError(
                f"{where}: field '{self.answer}' is {reprlib.repr(row[self.answer])}, which is "
                f"{'a choice' if kind == 'text' else f'the {kind} of a choice'} and the {' and the '.join(others)} of "
                f"another: say which is meant with {keys}"
            )
        return choices[readings[kind]]

    @property
    def _kinds(self) -> tuple[str, ...]:
        """How an answer can be read, the first that fits."""
        return ("label",) if self.labels is not None else (self.kind,) if self.kind is not None else _UNASKED

    def _rivals(self, kind: str) -> tuple[str, ...]:
        """The kinds that make another choice of an answer doubtful which is of this kind.

        A row's own labels are letters too. Whether numbers count from 0 or from 1 all rows together tell.
        """
        if self.kind is None:
            return {"text": ("letter", "index", "number", "label"), "index": ("label",)}.get(kind, ())
        return ("label",) if kind == "letter" else ()

    def _key(self, kind: str, labels: tuple[str, list[str]] | None) -> str:
        """What the task file says for a kind."""
        if kind != "label" or labels is None:
            return f'answer_kind = "{kind}"'
        return f'choice_labels = "{labels[0]}"{" in place of answer_kind" if self.kind else ""}'

    def _refusal(
        self, value: Any, choices: list[str], readings: Mapping[str, int], labels: tuple[str, list[str]] | None
    ) -> str:
        """What an answer must be that is none, and what would make one of it, as the rest of a sentence."""
        texts = [text for text in choices if text.strip()]
        names, where = ([], "") if labels is None else (labels[1], labels[0])
        wanted = {
            "text": f"one of the choices {', '.join(map(reprlib.repr, texts))}",
            "index": f"an index from 0 to {len(choices) - 1}",
            "number": f"a number from 1 to {len(choices)}",
            "letter": f"the letter of one of the {len(choices)} choices",
            "label": f"one of the labels {', '.join(map(reprlib.repr, names))} of '{where}'",
        }
        left_out = "" if len(texts) == len(choices) else " (empty choices left out)"
        must = ", or ".join(wanted[kind] + left_out for kind in self._kinds)
        mends = {kind: at for kind, at in readings.items() if kind == "label"} or ({} if self.labels else readings)
        either = ", or ".join(
            f"{self._key(kind, labels)} in the task file makes it {reprlib.repr(choices[at])}"
            for kind, at in mends.items()
        )
        shown = reprlib.repr(value)
        if isinstance(value, bool):
            shown = as_text(value)
            either = "answers that are true or false go with label and [options], in place of choices and answer"
        near = did_you_mean(str(value), names if self.labels else texts)
        return f"must be {must}, not {shown}{near}{f' ({either})' if either else ''}"

    def _readings(self, value: Any, choices: list[str], labels: Sequence[str] = ()) -> dict[str, int]:
        """Kind -> the place, from 0, of the choice that this answer names if it is of that kind."""
        text, texts = as_text(value), choices
        if text not in texts:
            text, texts = nfc(text), [nfc(choice) for choice in choices]
        found = {"text": texts.index(text) if text in texts else -1, "letter": self._letter(text.strip())}
        if number := _NUMBER.fullmatch(comparable(text.strip())):
            found |= {"index": int(number[0]), "number": int(number[0]) - 1}
        found["label"] = _place(text.strip(), labels)
        return {kind: at for kind, at in found.items() if 0 <= at < len(choices) and choices[at].strip()}

    def _letter(self, text: str) -> int:
        """The place of the choice with this letter, -1 if it is none; fields that are called by letters have those."""
        letter = _LETTER.fullmatch(text)
        if letter is None:
            return -1
        names = [] if isinstance(self.choices, str) else [name.rpartition(".")[2].upper() for name in self.choices]
        if names and all(len(name) == 1 and name.isalpha() for name in names):
            return names.index(letter[1].upper()) if letter[1].upper() in names else -1
        return ord(letter[1].upper()) - ord("A")


def _place(text: str, labels: Sequence[str]) -> int:
    """The place of the one label that is this text, or else this letter; -1 if there is none."""
    letter = _LETTER.fullmatch(text)
    for wanted, known in (
        (comparable(text), [comparable(label.strip()) for label in labels]),
        (letter[1].upper() if letter else "", [label.strip().upper() for label in labels]),
    ):
        if known.count(wanted) == 1:
            return known.index(wanted)
    return -1
