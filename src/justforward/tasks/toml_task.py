"""A task as a TOML file: where its rows are, a prompt, and what is to be answered. docs/own-task.md has the format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from justforward.tasks.base import Task
from justforward.tasks.choices import KINDS, Choices
from justforward.tasks.loading import Row
from justforward.tasks.own_rows import Answer, AnswerReader, Label, RowReader
from justforward.tasks.texts import nfc
from justforward.tasks.toml_keys import Keys
from justforward.tasks.whole import WHOLE, whole_task


@dataclass(frozen=True)
class Answering:
    """What is to be answered: how it is read from a row, and what the task makes of it.

    reader: reads and checks the answer; fields: what rows must have for it; named: fields that the answer's text names;
    secret: fields that a prompt must not show; parts: of the Task; optional: fields that may_be_empty can name.
    """

    reader: AnswerReader
    fields: Mapping[str, Any]
    secret: tuple[str, ...]
    parts: Mapping[str, Any]
    named: list[str] = field(default_factory=list)
    optional: tuple[str, ...] = ()


def read_toml(path: Path) -> Task:
    """The task that a TOML file describes; its rows are read when it is loaded.

    Raises ValueError, one line that names the file and the key, for what is wrong in it.
    """
    keys = Keys.read(path)
    kind = keys.kind()
    if kind in WHOLE:
        return whole_task(keys, kind, keys.given.get("system"))
    name = keys.name()
    prompt, calibration = keys.template("prompt"), keys.template("calibration", default="")
    if not prompt.fields:
        raise keys.error("prompt", "names no {field}, so that it would be the same for every row")
    answering = _KINDS[kind](keys)
    texts = tuple(dict.fromkeys([*prompt.fields, *calibration.fields, *answering.named]))
    for shown in answering.secret:
        if shown in texts:
            raise keys.error("prompt", f"{{{shown}}} is what is to be answered, or a list: a prompt cannot show it")
    may_be_empty = keys.may_be_empty(tuple(dict.fromkeys([*texts, *answering.optional])))
    reader = RowReader(texts, answering.reader, keys.columns(), may_be_empty)
    source = keys.source()
    return Task(
        name=name,
        rows=lambda: source.load(name, reader),
        fields={**dict.fromkeys(texts, str), **answering.fields},
        template=prompt.render,
        calibration=calibration.render,
        metric=keys.metric(kind),
        separator=keys.text("separator", "\n\n"),
        markup=keys.given.get("markup", False),
        chat=keys.given.get("chat", False),
        system=_system(keys),
        **answering.parts,
    )


def _system(keys: Keys) -> str | None:
    if "system" in keys.given and not keys.given.get("chat", False):
        raise keys.error("system", "is what a conversation begins with: give chat = true, or leave it out")
    return keys.given.get("system")


def _classification(keys: Keys) -> Answering:
    label, words = keys.name_of("label"), keys.options()
    parts = {"words": words, "correct": lambda row: row[label]}
    return Answering(Label(label, tuple(words)), {label: tuple(words)}, (label,), parts)


def _multiple_choice(keys: Keys) -> Answering:
    names, answer = keys.names("choices"), keys.name_of("answer")
    kind, empty = keys.one_of("answer_kind", KINDS), frozenset(map(nfc, keys.given.get("may_be_empty", [])))
    labels = _choice_labels(keys, names)
    choices = Choices(names, answer, kind, empty, labels)
    text, named = _answer_text(keys, "choice_text", " {choice}", "choice")
    fields = {names: [str]} if isinstance(names, str) else dict.fromkeys(names, str)
    parts = {"candidates": choices.of, "correct": lambda row: row[answer], "option": text}
    secret = (answer, *([names] if isinstance(names, str) else []), *([labels] if labels else []))
    return Answering(choices, {**fields, answer: str}, secret, parts, named, choices.fields)


def _choice_labels(keys: Keys, choices: str | tuple[str, ...]) -> str | None:
    """The field with the labels of the choices, by which the answer is read."""
    if "choice_labels" not in keys.given:
        return None
    if "answer_kind" in keys.given:
        raise keys.error("answer_kind", "with choice_labels the answer is one of the labels: leave answer_kind out")
    if not isinstance(choices, str):
        mend = 'where fields are called by letters, answer_kind = "letter" finds them'
        raise keys.error("choice_labels", f"is for choices in one field: leave it out ({mend})")
    return keys.name_of("choice_labels")


def _generation(keys: Keys) -> Answering:
    answer = keys.name_of("answer")
    text, named = _answer_text(keys, "answer_text", " {answer}\n", "answer")
    parts = {"correct": lambda row: tuple(row[answer]), "option": text, "generation": True}
    return Answering(Answer(answer), {answer: [str]}, (answer,), parts, named)


def _answer_text(keys: Keys, key: str, default: str, placeholder: str) -> tuple[Callable[[Row, str], str], list[str]]:
    """The function from row and answer to the text after the prompt, and the fields of the row that it names."""
    template = keys.template(key, default=default)
    if placeholder not in template.fields:
        raise keys.error(key, f"must hold {{{placeholder}}}")
    named = [name for name in template.fields if name != placeholder]
    return (lambda row, answer: template.render({**row, placeholder: answer})), named


_KINDS: dict[str, Callable[[Keys], Answering]] = {
    "classification": _classification,
    "multiple choice": _multiple_choice,
    "generation": _generation,
}
