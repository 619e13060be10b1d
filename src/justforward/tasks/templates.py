"""Texts with `{field}` in them: the braces of `str.format` without attributes, indices, formats and conversions."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from justforward.tasks.texts import nfc

_MARKS = "{}[]."
"""What `str.format` would read as more than the name of a field."""


@dataclass(frozen=True)
class Template:
    """A text in pieces: each a literal and the field that follows it, None at the end."""

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str, where: str) -> Template:
        """Read `text`. Raises ValueError, naming `where`, for what is not plain `{field}`s between literals."""
        pieces = []
        try:
            for literal, field, spec, conversion in string.Formatter().parse(text):
                pieces.append((literal, None if field is None else nfc(field)))
                if field is not None:
                    _check_field(field, spec or conversion, where)
        except _NotPlain as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            raise ValueError(
                f"{where}: unbalanced braces ({error}): a field is written {{name}}, a brace of the text {{{{ or }}}}"
            ) from None
        return cls(tuple(pieces))

    @property
    def fields(self) -> list[str]:
        """The fields named, each once, in order."""
        return list(dict.fromkeys(field for _, field in self.pieces if field is not None))

    def render(self, row: Mapping[str, Any]) -> str:
        """The text with the fields of `row`, which are texts."""
        return "".join(literal + (row[field] if field is not None else "") for literal, field in self.pieces)


class _NotPlain(ValueError):
    """A field that is more than a name."""


def _check_field(field: str, more: str | None, where: str) -> None:
    if field == "":
        raise _NotPlain(f"{where}: {{}} names no field: write {{name}}, or {{{{}}}} for the braces themselves")
    if more or any(mark in field for mark in _MARKS):
        raise _NotPlain(
            f"{where}: {{{field}}} must be the plain name of a field, without attribute, index, format or conversion "
            "(a column of such a name is renamed under [columns])"
        )
