"""Where a task file's rows are: two files, one file that is split, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from justforward.tasks.delimited import Dialect
from justforward.tasks.hub import Hub, hub_rows
from justforward.tasks.loading import Row, read_all
from justforward.tasks.sampling import sample_indices
from justforward.tasks.table_files import check_table, read_table

_KEYS = "its splits are named by train and validation in the task file, its configuration by config; "


class Reader(Protocol):
    """What makes rows of a task out of what stands in its files."""

    def __call__(self, row: Any, where: str) -> Row:
        """The row, checked. Raises ValueError, naming where it stands."""
        ...

    def check_all(self, rows: Sequence[Any], where: str) -> None:
        """Raise ValueError for what only all rows together show, after each was read."""
        ...


@dataclass(frozen=True)
class Split:
    """Which rows of one table are for validation: a number (int) or a share (float) of them, drawn by the seed."""

    validation: int | float
    seed: int = 0

    def apply(self, rows: list[Row], where: str) -> tuple[list[Row], list[Row]]:
        """(training, validation) rows, each in their order. Raises ValueError where one of them would be empty."""
        share = isinstance(self.validation, float)
        count = max(1, round(len(rows) * self.validation)) if share else self.validation
        if count >= len(rows):
            raise ValueError(
                f"{where}: there are {len(rows)} rows, and split.validation {self.validation} leaves none to train on"
            )
        drawn = set(sample_indices(len(rows), int(count), self.seed))
        parts: tuple[list[Row], list[Row]] = ([], [])
        for index, row in enumerate(rows):
            parts[index in drawn].append(row)
        return parts


@dataclass(frozen=True)
class Source:
    """train and validation are files, or splits of `hub`; without validation `split` divides train.

    dialect: how files of cells and delimiters are written.
    """

    train: str
    validation: str | None = None
    hub: Hub | None = None
    split: Split | None = None
    dialect: Dialect = field(default_factory=Dialect)

    @property
    def tables(self) -> list[str]:
        """The files, or the hub's splits."""
        return [name for name in (self.train, self.validation) if name is not None]

    def check(self) -> None:
        """Raise ValueError for a file that cannot be read."""
        for name in self.tables if self.hub is None else ():
            check_table(Path(name))

    def load(self, task: str, read: Reader) -> tuple[list[Row], list[Row]]:
        """(training, validation) rows. Raises ValueError, one line, for what cannot be had or read."""
        raw: list[Any] = []

        def kept(row: Any, where: str) -> Row:
            raw.append(row)
            return read(row, where)

        if self.hub is not None:
            mend = "with files, the task file gives train and validation, or file and split, instead of hub"
            found = hub_rows(task, self.hub, self.tables, mend, _KEYS)
            tables = [(where, read_all(where, rows, kept)) for where, rows in found]
        else:
            tables = [(name, self._read_file(name, read, kept)) for name in self.tables]
        read.check_all(raw, " and ".join(dict.fromkeys(where for where, _ in tables)))
        if self.split is not None:
            where, rows = tables[0]
            return self.split.apply(rows, where)
        return tables[0][1], tables[1][1]

    def _read_file(self, name: str, read: Reader, kept: Callable[[Any, str], Row]) -> list[Row]:
        def is_row(row: dict[str, str]) -> bool:
            try:
                read(row, name)
            except ValueError:
                return False
            return True

        rows, unit = read_table(Path(name), self.dialect, is_row)
        return read_all(name, rows, kept, unit)
