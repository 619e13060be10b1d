"""Rows of CSV and TSV files, and what decides whether a quotation mark encloses a cell or is text.

In .csv files quotation marks enclose cells; .tsv files are written in both ways. Where the two readings differ and
nothing in the file tells which is meant, the file is refused, and a key of the task file decides: a mark that is read
in the wrong way takes the following rows into its cell, and nobody sees them go.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from justforward.tasks.loading import in_utf8
from justforward.tasks.texts import nfc

Rows = Iterator[tuple[int, Any]]
IsRow = Callable[[dict[str, str]], bool]
"""Whether the task can read these cells as a row."""

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LONGEST_CELL = 2**31 - 1
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)
"""The first line by which spreadsheets tell each other the delimiter."""


@dataclass(frozen=True)
class Dialect:
    """How a table is written; None: as its file tells. quotes: quotation marks enclose cells, or else are text."""

    quotes: bool | None = None
    delimiter: str | None = None


@dataclass(frozen=True)
class Record:
    """The cells of one row, the number of the line where it begins, and its lines as they stand in the file."""

    line: int
    cells: list[str]
    lines: list[str]


@dataclass
class Table:
    """One open file.

    columns: their names, "" for one without; named: how many there are up to the last name; marked: the row that is
    read has quotation marks; shown: something in the file shows that they enclose cells; doubtful: the first line with
    a cell in quotes that needs none.
    """

    path: Path
    delimiter: str
    quotes: bool | None
    is_row: IsRow
    columns: list[str] | None = None
    named: int = 0
    marked: bool = False
    shown: bool = False
    doubtful: int | None = None

    def rows(self, lines: Iterable[str], first: int) -> Rows:
        """The rows below the line of names. Raises ValueError, naming the lines, where they cannot be read."""
        for record in self._records(lines, first):
            self.marked = any('"' in line for line in record.lines)
            if self.quotes is None and any(self.delimiter + '"' in self.delimiter + line for line in record.lines):
                self._judge(record)
            if self.columns is None:
                self.columns = self._names(record)
                self.named = max((i for i, name in enumerate(self.columns, start=1) if name), default=0)
            else:
                yield record.line, self._named(record.cells, f"{self.path}, line {record.line}")
        if self.doubtful is not None and not self.shown:
            raise ValueError(
                f"{self.path}, line {self.doubtful}: a cell stands in quotation marks, which between tabs may be "
                f"part of the text: {_MENDS}"
            )

    def _records(self, lines: Iterable[str], first: int) -> Iterator[Record]:
        kept: list[str] = []

        def keep() -> Iterator[str]:
            for line in lines:
                kept.append(line)
                yield line

        reader = csv.reader(
            keep(),
            delimiter=self.delimiter,
            quoting=csv.QUOTE_NONE if self.quotes is False else csv.QUOTE_MINIMAL,
            strict=True,  # a quote that is never closed would else take the rest of the file without a word
        )
        line = first
        try:
            for cells in reader:
                if cells:
                    yield Record(line, cells, kept.copy())
                line += len(kept)
                kept.clear()
        except csv.Error as error:
            self.marked = True
            taken = f"; the mark that opens takes lines {line} to {line + len(kept) - 1}" if len(kept) > 1 else ""
            what = str(error).replace("\t", r"\t")
            raise ValueError(
                f"{self.path}, line {line}: not valid {self.path.suffix[1:].upper()}: {what} (a cell with quotes or "
                f"line breaks stands in quotes, and a quote in it is doubled{taken}{self._plainly()})"
            ) from None

    def _judge(self, record: Record) -> None:
        """Raise ValueError where quotation marks make one cell of what may be several rows."""
        plain = [self._plain(line) for line in record.lines if line.strip()]
        if len(record.lines) > 1:
            if self.delimiter == "\t" or self._are_rows(plain):
                last = record.line + len(record.lines) - 1
                raise ValueError(
                    f"{self.path}, line {record.line}: a quotation mark opens a cell there that takes lines "
                    f"{record.line} to {last} into one row: {_MENDS}"
                )
        elif self.columns is not None and len(plain[0]) == len(self.columns) != len(record.cells):
            raise ValueError(
                f"{self.path}, line {record.line}: a quotation mark takes delimiters into one cell, and without that "
                f"there are as many cells as in the first line: {_MENDS}"
            )
        elif self.delimiter == "\t":
            needed = any('""' in cell[1:-1] and cell.strip('"') for cell in plain[0])
            if self.columns is None or needed or len(plain[0]) != len(record.cells):
                self.shown = True
            else:
                self.doubtful = self.doubtful or record.line

    def _are_rows(self, plain: list[list[str]]) -> bool:
        """Whether these lines are rows by themselves, and so may have been taken into a cell.

        Where the task can tell a row from other text, two such lines are enough: of an honest cell only the line with
        the other cells of its row looks like one. Where any text would do, as for a question and its answer, commas
        make many a line of prose a row, and all lines have to be.
        """
        if self.columns is None:
            return False
        if not self.is_row({name: f'" {i}' for i, name in enumerate(self.columns) if name}):
            return sum(self._is_row(cells) for cells in plain) > 1
        return all(map(self._is_row, (plain[0], plain[-1]))) and all(map(self._fits, plain))

    def _fits(self, cells: list[str]) -> bool:
        try:
            self._named(cells, "")
        except ValueError:
            return False
        return True

    def _is_row(self, cells: list[str]) -> bool:
        return self._fits(cells) and self.is_row(self._named(cells, ""))

    def _plain(self, line: str) -> list[str]:
        return next(csv.reader([line], delimiter=self.delimiter, quoting=csv.QUOTE_NONE))

    def _names(self, record: Record) -> list[str]:
        """The columns' names, from the first line that is not blank."""
        names = [nfc(cell) if cell.strip() else "" for cell in record.cells]
        place = f"{self.path}, line {record.line}"
        for name in names:
            if name and names.count(name) > 1:
                raise ValueError(f"{place}: the column '{name}' is given twice")
        if not any(names):
            raise ValueError(
                f"{place}: it names no column, all its cells are empty: delete the line, or name the columns there"
            )
        other = next((mark for mark in ";\t|," if mark in names[0]), None) if len(names) == 1 else None
        if other is not None:
            raise ValueError(
                f"{place}: there is one column, {names[0]!r}: if {other!r} stands between the cells, say so in the "
                f"task file with delimiter = {_toml(other)}"
            )
        return names

    def _named(self, cells: list[str], where: str) -> dict[str, str]:
        """The cells by name; cells without one must be empty where they stand behind all names."""
        assert self.columns is not None
        if len(cells) < self.named or any(cell.strip() for cell in cells[len(self.columns) :]):
            names = [name for name in self.columns if name]
            raise ValueError(
                f"{where}: {len(cells)} cells, and the first line names {len(names)} columns: {', '.join(names)} "
                f"({self._on_delimiters()})"
            )
        for cell in cells[self.named :]:
            if cell.strip():
                raise ValueError(
                    f"{where}: the cell {cell!r} stands in a column without a name ({self._on_delimiters()}; or name "
                    "the column in the first line)"
                )
        return {name: cell for name, cell in zip(self.columns, cells, strict=False) if name}

    def _on_delimiters(self) -> str:
        if self.quotes is False:
            return "quotes = false in the task file says that quotes enclose no delimiter"
        return f"a cell with the delimiter in it stands in quotes{self._plainly()}"

    def _plainly(self) -> str:
        asked = self.quotes is None and self.marked
        return "; quotes = false in the task file: quotation marks are text" if asked else ""


_MENDS = (
    "the task file says with quotes = false that quotation marks are text, with quotes = true that they enclose cells"
)


def read_delimited(path: Path, dialect: Dialect, is_row: IsRow) -> Rows:
    """The numbered rows of a file; a row's number is the line where it begins, from 1.

    Raises ValueError for what cannot be read, or can be read in two ways.
    """
    csv.field_size_limit(_LONGEST_CELL)  # the module's own stops at 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file, in_utf8(path):
        delimiter, lines, first = _begin(file, dialect.delimiter or DELIMITERS[path.suffix.lower()])
        yield from Table(path, delimiter, dialect.quotes, is_row).rows(lines, first)


def _begin(file: TextIO, delimiter: str) -> tuple[str, Iterable[str], int]:
    """The delimiter, which the file's first line may name, the other lines, and the number of the first of these."""
    head = file.readline()
    told = _SEPARATOR_LINE.fullmatch(head)
    return (told[1], file, 2) if told else (delimiter, itertools.chain([head] if head else [], file), 1)


def _toml(mark: str) -> str:
    return '"\\t"' if mark == "\t" else f'"{mark}"'
