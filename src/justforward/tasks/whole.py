"""Texts that are learned as they are: plain texts, and conversations whose assistant's turns are learned.

A row of a task file's own becomes a text or turns here; which of its tokens are scored is the encoder's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from justforward.registry import did_you_mean
from justforward.tasks.base import Task
from justforward.tasks.loading import Row, check_row
from justforward.tasks.own_rows import AnswerReader, Fields, RowReader, check_not_empty
from justforward.tasks.toml_keys import Keys

ROLES = {
    **{role: role for role in ("system", "user", "assistant")},
    **{"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"},
}
"""What roles are called in rows: as chat templates call them, and as ShareGPT and others do."""

SPELLINGS = (("role", "content"), ("from", "value"))
"""The keys of a turn: of its role and of its text."""


class Nothing(AnswerReader):
    """No field is to be answered."""

    @property
    def names(self) -> tuple[str, ...]:
        """None."""
        return ()

    def __call__(self, row: Fields, where: str) -> None:
        """See AnswerReader."""


@dataclass(frozen=True)
class Messages(AnswerReader):
    """The field with the turns: a list of objects with a role and a text."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        """The field of the turns."""
        return (self.name,)

    def __call__(self, row: Fields, where: str) -> None:
        """Make them {"role", "content"}. Raises ValueError for what are no turns, and where nothing is learned."""
        check_row(row, {self.name: [dict]}, where)
        turns = [
            self._turn(turn, f"{where}, field '{self.name}', turn {i}") for i, turn in enumerate(row[self.name], 1)
        ]
        if all(turn["role"] != "assistant" for turn in turns):
            raise ValueError(f"{where}: field '{self.name}' has no turn of the assistant, so that nothing is learned")
        row[self.name] = turns

    def _turn(self, turn: Mapping[str, Any], where: str) -> dict[str, str]:
        keys = next((keys for keys in SPELLINGS if keys[0] in turn), SPELLINGS[0])
        check_row(turn, dict.fromkeys(keys, str), where)
        role, text = (turn[key] for key in keys)
        if role not in ROLES:
            raise ValueError(
                f"{where}: unknown role '{role}'{did_you_mean(role, list(ROLES))}; known: {', '.join(ROLES)}"
            )
        check_not_empty(text, keys[1], where)
        return {"role": ROLES[role], "content": text}


def whole_task(keys: Keys, kind: str, system: str | None) -> Task:
    """The task of a file of such a kind."""
    name, parts = keys.name(), _PARTS[kind](keys)
    reader = RowReader(parts.texts, parts.reader, keys.columns(), parts.may_be_empty)
    source = keys.source()
    return Task(
        name=name,
        rows=lambda: source.load(name, reader),
        fields=parts.fields,
        template=lambda row: "",
        metric=keys.metric(kind),
        markup=keys.given.get("markup", False),
        chat=parts.turns is not None,
        system=system,
        text=parts.text,
        turns=parts.turns,
        all_turns=keys.one_of("loss", ("assistant", "all")) == "all",
        splits_long=keys.one_of("long_texts", ("cut", "split")) == "split",
    )


@dataclass(frozen=True)
class _Parts:
    fields: Mapping[str, Any]
    texts: tuple[str, ...]
    reader: AnswerReader
    text: Callable[[Row], str] | None = None
    turns: Callable[[Row], list[dict[str, str]]] | None = None
    may_be_empty: frozenset[str] = frozenset()


def _text(keys: Keys) -> _Parts:
    name = keys.name_of("text")
    return _Parts({name: str}, (name,), Nothing(), text=lambda row: row[name])


def _conversation(keys: Keys) -> _Parts:
    name = keys.name_of("messages")
    return _Parts({name: [dict]}, (), Messages(name), turns=lambda row: row[name])


def _pair(keys: Keys) -> _Parts:
    user, assistant = keys.name_of("user"), keys.name_of("assistant")
    more = keys.name_of("input") if "input" in keys.given else None

    def turns(row: Row) -> list[dict[str, str]]:
        asked = "\n\n".join(part for part in (row[user], row[more] if more else "") if part.strip())
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": row[assistant]}]

    names = tuple(name for name in (user, more, assistant) if name)
    return _Parts(
        dict.fromkeys(names, str), names, Nothing(), turns=turns, may_be_empty=frozenset([more] if more else [])
    )


_PARTS: dict[str, Callable[[Keys], _Parts]] = {
    "text": _text,
    "conversation": _conversation,
    "question and answer": _pair,
}
WHOLE = tuple(_PARTS)
"""The kinds of task files that are read here."""
