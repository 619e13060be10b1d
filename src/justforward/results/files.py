"""Result files: metrics as JSON, predictions as JSON lines; written whole (a temporary file, then renamed)."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk, a quota or a file may take no more."""


@contextmanager
def writing(folder: Path, mend: Callable[[], str]) -> Iterator[None]:
    """Around work that writes to `folder`: a full disk, wherever it is met, is one line that ends with `mend()`.

    So is what libraries in Rust say of files in words of their own. Raises ValueError for these, and all else as it is.
    """
    try:
        yield
    except Exception as error:
        number, place = _system_error(error)
        if number is None or (isinstance(error, OSError) and number not in FULL):
            raise
        what = mend() if number in FULL else "see that files can be written there"
        raise ValueError(f"cannot write to {place or folder}: {os.strerror(number)}: {what}") from error


def _system_error(error: BaseException | None) -> tuple[int | None, str | None]:
    """The number of the system's error that an error is, or came from, and the file, where it is told."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno, error.filename
        if told := re.search(r"\(os error (\d+)\)", str(error)):
            return int(told[1]), None
        if re.search(r"PytorchStreamWriter|unexpected pos|iostream error", str(error)):  # torch.save does not tell why
            return errno.ENOSPC, None
        error = error.__cause__ or error.__context__
    return None, None


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill at any moment, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # which names no file where a disk is full
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON; what is not finite as null, for JSON has no word for it."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_name(
    *,
    task: str,
    model: str,
    sfc: bool = False,
    icl_sfc: bool = False,
    num_eval: int | None = None,
    num_train: int = 0,
    num_dev: int | None = None,
    tag: str = "",
    train_set: int | None = None,
) -> str:
    """The original's file name: TASK-MODEL[-sfc][-icl_sfc][-sampleevalN][-ntrainN][-ndevN][-TAG]-trainsetI.json.

    train_set: the set's seed; None names a run with a demonstration set per evaluation sample.
    """
    parts = [task, Path(model).name]
    if sfc:
        parts.append("sfc")
    if icl_sfc:
        parts.append("icl_sfc")
    if num_eval is not None:
        parts.append(f"sampleeval{num_eval}")
    if num_train > 0:
        parts.append(f"ntrain{num_train}")
    if num_dev is not None:
        parts.append(f"ndev{num_dev}")
    if tag:
        parts.append(tag)
    parts.append("onetrainpereval" if train_set is None else f"trainset{train_set}")
    return "-".join(parts) + ".json"


def method_name(job: Mapping[str, Any]) -> str:
    """What a job does, by its arguments, in the paper's words: "ICL", "MeZO (LoRA)", "FT", ..."""
    if job.get("linear_probing"):
        return "LP"
    methods = {"zo": "MeZO", "regular": "FT"}
    method = methods.get(str(job.get("trainer")), "ICL" if job.get("num_train") else "Zero-shot")
    names = {"lora": "LoRA", "prefix_tuning": "prefix", "head_tuning": "head", "non_diff": "reward"}
    details = [name for argument, name in names.items() if job.get(argument)]
    details += ["SFC"] if job.get("sfc") or job.get("icl_sfc") else []
    return f"{method} ({', '.join(details)})" if details else method
