"""What stands in a row, as text: which values can be read at all, and which texts are the same label."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WHOLE = re.compile(r"([+-]?[0-9]+)\.0+")


@dataclass(frozen=True)
class Unreadable:
    """Stands in a row for a value that cannot be read, until the row's place is known; `why` completes "it is"."""

    why: str


def check_readable(row: Any, where: str) -> None:
    """Raise ValueError, naming `where` and the field, for a value that cannot be read or a text that is no Unicode.

    Every row of every source passes here once: what is behind takes texts as they are.
    """
    waiting: list[tuple[str, Any]] = [("", row)]
    while waiting:
        name, value = waiting.pop()
        field = f"field '{name}'" if name else "the row"
        if isinstance(value, str):
            if not _is_unicode(value):
                raise ValueError(f"{where}: {field} holds half of a surrogate pair, which is no character: {value!a}")
        elif isinstance(value, Unreadable):
            raise ValueError(f"{where}: {field} cannot be read: it is {value.why}")
        elif isinstance(value, Mapping):
            for inner in reversed(list(value)):
                if not _is_unicode(str(inner)):
                    raise ValueError(f"{where}: a field's name holds half of a surrogate pair: {inner!a}")
                waiting.append((f"{name}.{inner}" if name else str(inner), value[inner]))
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in reversed(value)]


def as_text(value: Any) -> Any:
    """A number or truth value as JSON writes it; anything else as it is, for the checks to judge."""
    plain = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return json.dumps(value) if plain else value


def nfc(text: str) -> str:
    """The text in the composed form of Unicode, in which names are compared: "é" is one character or two."""
    return unicodedata.normalize("NFC", text)


def comparable(text: str) -> str:
    """The form in which labels are compared: composed, and a whole number without its fraction (1.0 is 1)."""
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else nfc(text)


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
