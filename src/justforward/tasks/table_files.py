"""Rows of the user's own files: JSON lines, JSON, CSV, TSV, Parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from justforward.tasks.loading import in_utf8, parse_json, read_jsonl

Rows = Iterator[tuple[int, Any]]


def read_table(path: Path) -> tuple[Rows, str]:
    """The numbered rows of a file, read as they are asked for, and what the numbers count: "line" or "row".

    Raises ValueError, one line, for a file that is missing or not of a known kind; its rows raise it for damage.
    """
    check_table(path)
    reader, unit = _READERS[path.suffix.lower()]
    return reader(path), unit


def check_table(path: Path) -> None:
    """Raise ValueError unless the file can be read, and is of a known kind."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"{path}: unknown kind of file: the name ends with one of {', '.join(_READERS)}")


def _read_jsonl(path: Path) -> Rows:
    return read_jsonl(path, "line")


def _read_json(path: Path) -> Rows:
    with in_utf8(path):
        text = path.read_text(encoding="utf-8-sig")
    rows = parse_json(text, str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must be a JSON list of objects; one object per line is the kind .jsonl")
    return enumerate(rows, start=1)


def _delimited(delimiter: str) -> Callable[[Path], Rows]:
    def read(path: Path) -> Rows:
        with path.open(encoding="utf-8-sig", newline="") as file, in_utf8(path):
            # Strict: a quote that is never closed would else swallow the rest of the file.
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            columns: list[str] | None = None
            line = 1
            try:
                for cells in reader:
                    if columns is None:
                        columns = _header(cells, path)
                    elif cells:
                        yield line, _named(columns, cells, f"{path}, line {line}")
                    line = reader.line_num + 1
            except csv.Error as error:
                raise ValueError(
                    f"{path}, line {line}: not valid {path.suffix[1:].upper()}: {error} (a cell with quotes or line "
                    "breaks stands in quotes, and a quote in it is doubled)"
                ) from None

    return read


def _header(cells: list[str], path: Path) -> list[str]:
    for cell in cells:
        if cells.count(cell) > 1:
            raise ValueError(f"{path}, line 1: the column '{cell}' is given twice")
    return cells


def _named(columns: list[str], cells: list[str], where: str) -> dict[str, str]:
    if len(cells) != len(columns):
        raise ValueError(
            f"{where}: {len(cells)} cells, and the first line names {len(columns)} columns: {', '.join(columns)} (a "
            "cell with the delimiter in it stands in quotes)"
        )
    return dict(zip(columns, cells, strict=True))


def _read_parquet(path: Path) -> Rows:
    import pyarrow  # heavy, and not needed for other files
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from None


_READERS: dict[str, tuple[Callable[[Path], Rows], str]] = {
    ".jsonl": (_read_jsonl, "line"),
    ".json": (_read_json, "row"),
    ".csv": (_delimited(","), "line"),
    ".tsv": (_delimited("\t"), "line"),
    ".parquet": (_read_parquet, "row"),
}
