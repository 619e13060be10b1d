"""Rows of the user's own files: JSON lines, JSON, CSV, TSV, Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from justforward.tasks.delimited import DELIMITERS, Dialect, IsRow, Rows, read_delimited
from justforward.tasks.loading import in_utf8, parse_json, read_jsonl


def read_table(path: Path, dialect: Dialect, is_row: IsRow) -> tuple[Rows, str]:
    """The numbered rows of a file, read as they are asked for, and what the numbers count: "line" or "row".

    dialect, is_row: for CSV and TSV, see `delimited`.

    Raises ValueError, one line, for a file that is missing or not of a known kind; its rows raise it for damage.
    """
    check_table(path)
    kind = path.suffix.lower()
    if kind in DELIMITERS:
        return read_delimited(path, dialect, is_row), "line"
    reader, unit = _READERS[kind]
    return reader(path), unit


def check_table(path: Path) -> None:
    """Raise ValueError unless the file can be read, and is of a known kind."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix.lower() not in _KINDS:
        raise ValueError(f"{path}: unknown kind of file: the name ends with one of {', '.join(_KINDS)}")


def _read_jsonl(path: Path) -> Rows:
    return read_jsonl(path, "line")


def _read_json(path: Path) -> Rows:
    with in_utf8(path):
        text = path.read_text(encoding="utf-8-sig")
    rows = parse_json(text, str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: must be a JSON list of objects; one object per line is the kind .jsonl")
    return enumerate(rows, start=1)


def _read_parquet(path: Path) -> Rows:
    import pyarrow  # heavy, and not needed for other files
    import pyarrow.parquet

    with _one_line(path):
        names = pyarrow.parquet.read_schema(path).names
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: the column '{name}' is given twice")
    with _one_line(path), pyarrow.parquet.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, start=1)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # damage anywhere in the file, or texts in it that are not UTF-8
        raise ValueError(f"{path}: not a Parquet file that can be read: {' '.join(str(error).split())}") from None


_READERS: dict[str, tuple[Callable[[Path], Rows], str]] = {
    ".jsonl": (_read_jsonl, "line"),
    ".json": (_read_json, "row"),
    ".parquet": (_read_parquet, "row"),
}
_KINDS = (".jsonl", ".json", *DELIMITERS, ".parquet")
