"""Rows of a data set: on the Hugging Face hub, or a folder in its format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

Hub = tuple[str, str | None]
"""Data set (or a folder) and its configuration."""

_LONGEST_REASON = 160
"""Characters of what a library says, and of each cause of it: what to do about it stands behind."""


def hub_rows(
    name: str, hub: Hub, splits: Iterable[str], mend: str, keys: str = ""
) -> list[tuple[str, Iterable[tuple[int, Any]]]]:
    """For each of the splits what to call it, and its numbered rows.

    Raises ValueError, one line, whatever the library raises: with the `mend`, and with the `keys` that name splits and
    configuration where the data set was reached.
    """
    import datasets  # heavy, and not needed with files of one's own

    splits = list(splits)
    with _one_line(name, hub, mend, keys):
        found: Any = datasets.load_dataset(*hub, split=splits)
    dataset = "/".join(part for part in hub if part)

    def numbered(rows: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        with _one_line(name, hub, mend, keys):
            yield from enumerate(rows, start=1)

    return [(f"{dataset} {split}", numbered(rows)) for split, rows in zip(splits, found, strict=True)]


@contextmanager
def _one_line(name: str, hub: Hub, mend: str, keys: str) -> Iterator[None]:
    try:
        yield
    except ConnectionError as error:
        raise ValueError(f"{name}: cannot reach {hub[0]} on the Hugging Face hub ({reason(error)}); {mend}") from error
    except Exception as error:  # any reader of any format, and what the library makes of it
        raise ValueError(f"{name}: the data set {hub[0]} cannot be read ({reason(error)}); {keys}{mend}") from error


def reason(error: BaseException) -> str:
    """What the library says, and what it was told in turn: only the last may say what is wrong."""
    said = [str(error) or type(error).__name__]
    cause = error.__cause__
    while cause is not None:
        said.append(str(cause))
        cause = cause.__cause__
    return ": ".join(map(_shortened, said))


def _shortened(text: str) -> str:
    """One line; of a long one begin and end, because what libraries show of the data stands between these."""
    text = " ".join(text.split())
    if len(text) <= _LONGEST_REASON:
        return text
    begin, end = text[: _LONGEST_REASON // 2], text[-_LONGEST_REASON // 2 :]
    return f"{begin.rpartition(' ')[0] or begin} ... {end.partition(' ')[2] or end}"
