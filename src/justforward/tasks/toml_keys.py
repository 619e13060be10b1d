"""The keys of a task file in TOML: known names, right types, sensible values; each mistake is one line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from justforward.registry import did_you_mean
from justforward.tasks.base import TASKS
from justforward.tasks.delimited import DELIMITERS, Dialect
from justforward.tasks.loading import in_utf8
from justforward.tasks.metrics import check_metric
from justforward.tasks.sources import Source, Split
from justforward.tasks.templates import Template
from justforward.tasks.texts import comparable, nfc

_STRINGS = (
    *("name", "prompt", "calibration", "separator", "metric", "train", "validation", "file", "hub", "config"),
    *("label", "answer", "answer_kind", "choice_text", "choice_labels", "answer_text", "delimiter"),
    *("text", "messages", "user", "assistant", "input", "loss", "long_texts"),
)
_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_STRINGS, str),
    **dict.fromkeys(("options", "columns", "split"), dict),
    "may_be_empty": list,
    "quotes": bool,
    "markup": bool,
    "chat": bool,
    "system": str,
    "choices": (str, list),
}
_TYPE_NAMES = {
    str: "a string",
    dict: "a table",
    list: "a list of strings",
    bool: "true or false",
    (str, list): "a string or a list of strings",
}
# A task is of the kind of which it has all keys and none of another's.
_KINDS = {
    "classification": {"label", "options"},
    "multiple choice": {"choices", "answer"},
    "generation": {"answer"},
    "text": {"text"},
    "conversation": {"messages"},
    "question and answer": {"user", "assistant"},
}
_ONLY_FOR = {
    "answer_kind": ("multiple choice",),
    "choice_text": ("multiple choice",),
    "choice_labels": ("multiple choice",),
    "answer_text": ("generation",),
    "calibration": ("classification", "multiple choice"),
    **dict.fromkeys(("prompt", "separator"), ("classification", "multiple choice", "generation")),
    "metric": ("classification", "multiple choice", "generation", "conversation", "question and answer"),
    "input": ("question and answer",),
    "loss": ("conversation", "question and answer"),
    "long_texts": ("text",),
}
# What keeps its meaning without being given, and so would be missed by nobody where it stands below [options].
_EASILY_LOST = ("metric", "calibration", "separator")
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Keys:
    """The keys and values of one task file; every method raises ValueError for a value that cannot be."""

    path: Path
    given: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read the file. Raises ValueError for one that is no TOML, or has unknown keys or values of a wrong type."""
        with in_utf8(path):
            text = path.read_text(encoding="utf-8-sig")
        try:
            keys = cls(path, tomllib.loads(text))
        except RecursionError:
            raise ValueError(f"{path}: not valid TOML: too deeply nested") from None
        except ValueError as error:  # also of an integer that is too long
            reason = str(error).replace("Cannot overwrite a value", "a key is given twice")
            raise ValueError(f"{path}: not valid TOML: {reason}") from None
        keys._check_types()
        return keys

    def error(self, key: str, message: str) -> ValueError:
        """The error that says what is wrong with a key."""
        return ValueError(f"{self.path}: {key}: {message}")

    def text(self, key: str, default: str | None = None) -> str:
        """The value of a key that must be there if it has no default."""
        if key not in self.given and default is None:
            below = " (keys below [options] or another table belong to that table)" if self._in_a_table(key) else ""
            raise ValueError(f"{self.path}: the key '{key}' is missing{below}")
        return self.given.get(key, default)

    def name_of(self, key: str) -> str:
        """The value of a key that must be there, as the name of a field."""
        return nfc(self.text(key))

    def template(self, key: str, default: str | None = None) -> Template:
        """The value of a key as a template."""
        return Template.parse(self.text(key, default), f"{self.path}: {key}")

    def texts(self, key: str) -> dict[str, str]:
        """A table of strings, empty where it is not given."""
        table = self.given.get(key, {})
        for name, text in table.items():
            if not isinstance(text, str):
                raise self.error(f"{key}.{name}", f"must be a string, not {text!r}")
        return table

    def columns(self) -> dict[str, str]:
        """New name of a field -> the column's own, which may be a dotted path."""
        return {nfc(new): nfc(old) for new, old in self.texts("columns").items()}

    def names(self, key: str) -> str | tuple[str, ...]:
        """A field, or a list of different ones."""
        value = self.given.get(key, [])
        if isinstance(value, str):
            return nfc(value)
        if not all(isinstance(name, str) for name in value) or len(set(value)) < len(value) or not value:
            raise self.error(key, f"must be a list of different strings, not {value!r}")
        return tuple(map(nfc, value))

    def one_of(self, key: str, allowed: Sequence[str]) -> str | None:
        """One of the allowed values, or None where it is not given."""
        value = self.given.get(key)
        if value is not None and value not in allowed:
            raise self.error(key, f"must be {' or '.join(map(repr, allowed))}, not {value!r}")
        return value

    def name(self) -> str:
        """The task's name: it becomes part of file names, and is no other task's."""
        name = self.text("name")
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise self.error("name", f"must be of letters, digits, '_', '-' and '.', not {name!r}")
        if name in TASKS.names():
            raise self.error("name", f"'{name}' is a task of its own already: give another name")
        return name

    def kind(self) -> str:
        """What is to be answered, or learned whole: a name in _KINDS."""
        given = {key for keys in _KINDS.values() for key in keys} & set(self.given)
        kind = next((kind for kind, keys in _KINDS.items() if keys == given), None)
        if kind is None:
            raise ValueError(
                f"{self.path}: what is to be answered? Give label and [options], or choices and answer, or answer "
                f"alone; or what is to be learned whole: text, or messages, or user and assistant; given are: "
                f"{', '.join(sorted(given)) or 'none of them'}"
            )
        for key, kinds in _ONLY_FOR.items():
            if key in self.given and kind not in kinds:
                raise self.error(key, f"is for {' and '.join(kinds)}, and this is {kind}: leave it out")
        return kind

    def options(self) -> dict[str, str]:
        """Text by label; at least two that can be told apart."""
        options = self.texts("options")
        for lost in _EASILY_LOST:
            if lost in options:
                raise self.error(f"options.{lost}", f"stands below [options]: move {lost} above it")
        if len(options) < 2:
            raise self.error("options", f"there must be at least two, not {len(options)}")
        seen: dict[str, str] = {}
        same: dict[str, str] = {}
        for label, text in options.items():
            if not text.strip():
                raise self.error(f"options.{label}", "is empty")
            if (other := seen.setdefault(text.strip(" "), label)) != label:
                raise self.error(f"options.{label}", f"has the text of options.{other}, so nobody can tell them apart")
            if (other := same.setdefault(comparable(label), label)) != label:
                raise self.error(f"options.{label}", f"is the same label as options.{other}")
        return options

    def may_be_empty(self, texts: Sequence[str]) -> frozenset[str]:
        """The fields of templates that rows may leave empty."""
        for name in self.given.get("may_be_empty", []):
            if nfc(name) not in texts:
                near = did_you_mean(str(name), list(texts))
                raise self.error("may_be_empty", f"no template names {name!r}{near}; named are: {', '.join(texts)}")
        return frozenset(map(nfc, self.given.get("may_be_empty", [])))

    def metric(self, kind: str) -> str:
        """The name of a metric that can be taken of answers of this kind."""
        whole = kind not in ("classification", "multiple choice", "generation")
        generation = kind == "generation" or whole
        name = self.text("metric", "perplexity" if whole else "f1" if generation else "accuracy")
        if whole and name == "perplexity":
            return name
        try:
            check_metric(name, generation=generation)
        except ValueError as error:
            raise self.error("metric", str(error)) from None
        return name

    def source(self) -> Source:
        """Where the rows are; files are relative to the task file. Raises ValueError for a file that is not there."""
        if "hub" in self.given:
            source = self._hub_source()
        elif "file" in self.given:
            self._check_sources("file", ("train", "validation", "config"), needs="split")
            source = Source(self._beside("file"), split=self._split(), dialect=self._dialect("file"))
        else:
            self._check_sources("train", ("split", "config"), needs="validation")
            dialect = self._dialect("train", "validation")
            source = Source(self._beside("train"), self._beside("validation"), dialect=dialect)
        source.check()
        return source

    def _hub_source(self) -> Source:
        self._check_sources("hub", ("file", *(("validation",) if "split" in self.given else ())))
        split = self._split() if "split" in self.given else None
        validation = None if split else self.text("validation", "validation")
        self._dialect()
        hub = (self._hub_name(), self.given.get("config"))
        return Source(self.text("train", "train"), validation, hub, split)

    def _hub_name(self) -> str:
        """The data set's name, or the path of a folder, which is relative to the task file."""
        name = self.text("hub")
        folder = self.path.parent / Path(name).expanduser()
        if name.startswith((".", "/", "~")) and not folder.is_dir():
            raise self.error("hub", f"there is no folder {folder}")
        # "csv" alone is a format to the library, and "./csv" a folder.
        return os.path.join(os.curdir, folder) if folder.is_dir() else name  # noqa: PTH118

    def _dialect(self, *files: str) -> Dialect:
        """How the files of these keys are written."""
        delimiter = self.given.get("delimiter")
        for key in ("quotes", "delimiter"):
            if key in self.given and not any(Path(self.text(file)).suffix.lower() in DELIMITERS for file in files):
                raise self.error(key, f"is for {' and '.join(DELIMITERS)} files: leave it out")
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise self.error("delimiter", f"must be one character, and no quotation mark, not {delimiter!r}")
        return Dialect(self.given.get("quotes"), delimiter)

    def _check_sources(self, key: str, excluded: Sequence[str], needs: str | None = None) -> None:
        if (key not in self.given) or (needs is not None and needs not in self.given):
            raise ValueError(
                f"{self.path}: where are the rows? Give train and validation, or file and split, or hub; "
                f"'{needs if key in self.given else key}' is missing"
            )
        for other in excluded:
            if other in self.given:
                raise self.error(other, f"does not go with {key}{f' and {needs}' if needs else ''}: leave it out")

    def _beside(self, key: str) -> str:
        return str(self.path.parent / Path(self.text(key)).expanduser())

    def _split(self) -> Split:
        table = self.given["split"]
        _check_known(list(table), ["validation", "seed"], f"{self.path}: split")
        size, seed = table.get("validation"), table.get("seed", 0)
        if not ((type(size) is float and 0 < size < 1) or (type(size) is int and size >= 1)):
            raise self.error("split.validation", f"must be a share between 0 and 1, or a number of rows, not {size!r}")
        if type(seed) is not int or not 0 <= seed <= _LARGEST_SEED:
            raise self.error("split.seed", f"must be an integer from 0 to {_LARGEST_SEED}, not {seed!r}")
        return Split(size, seed)

    def _check_types(self) -> None:
        _check_known(list(self.given), list(_TYPES), str(self.path))
        for key, value in self.given.items():
            fits = isinstance(value, _TYPES[key])
            if not fits or (_TYPES[key] is list and not all(isinstance(entry, str) for entry in value)):
                raise self.error(key, f"must be {_TYPE_NAMES[_TYPES[key]]}, not {value!r}")

    def _in_a_table(self, key: str) -> bool:
        return any(key in table for table in self.given.values() if isinstance(table, dict))


def _check_known(names: list[str], known: list[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{where}: unknown key '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}")
