"""Result files: metrics as JSON, predictions as JSON lines; written whole (a temporary file, then renamed)."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

_CHECKPOINT = re.compile(r"(?:(?:checkpoint|ckpt|global_?step|step|iter|epoch)[-_]?)?\d+", re.IGNORECASE)
"""Names of a training's checkpoints, which tell one training's from another's only with the folder above."""

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
        if number is None or (isinstance(error, OSError | ValueError) and number not in FULL):
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
    """Write a file so that a reader, or a kill at any moment, never sees half of it.

    The encoding is UTF-8. Lone surrogates, such as the bytes of a path that are no text, become escapes: those of JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
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


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file in one write, behind what a kill may have left of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + "".join(line + "\n" for line in lines).encode())


def try_to_write(path: Path) -> None:
    """Make a result file's folder and write there, before the work; each of several processes tries.

    Raises ValueError, in one line, where that fails.
    """
    if path.is_dir():
        raise ValueError(f"--result_file {path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".{path.name}.{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--result_file: cannot write to {path.parent}: {error.strerror}") from error


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

    train_set: the set's seed; None names a run with a demonstration set per evaluation sample. The bytes on the disk
    are UTF-8 in every locale.
    """
    parts = [re.sub("[:/]", "-", task), model_label(model)]
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
    return os.fsdecode(("-".join(parts) + ".json").encode("utf-8", "surrogateescape"))


def model_label(model: str) -> str:
    """A model's part of a file name: what its folder, its .gguf file or its hub id ends with.

    Where that is a checkpoint's name, the folder above comes before it: "a/checkpoint-500" gives "a-checkpoint-500".
    """
    path = Path(model).expanduser()
    if path.exists() or not PureWindowsPath(model).name:
        path = Path(os.path.normpath(path.absolute()))  # "." and ".." have names, and links keep theirs
    elif "\\" in model:
        path = Path(PureWindowsPath(model).as_posix())
    above = path.parent.name if _CHECKPOINT.fullmatch(path.name) else ""
    return "-".join(part for part in (above, path.name) if part) or "root"


def method_name(job: Mapping[str, Any]) -> str:
    """What a job does, by its arguments, in the paper's words: "ICL", "MeZO (LoRA)", "FT", ..."""
    if job.get("linear_probing"):
        return "LP"
    named = job.get("zo_method") or "mezo"
    methods = {"zo": "MeZO" if named == "mezo" else named, "regular": "FT", "guided": "guided"}
    method = methods.get(str(job.get("trainer")), "ICL" if job.get("num_train") else "Zero-shot")
    names = {"lora": "LoRA", "prefix_tuning": "prefix", "head_tuning": "head", "non_diff": "reward"}
    details = [name for argument, name in names.items() if job.get(argument)]
    details += ["SFC"] if job.get("sfc") or job.get("icl_sfc") else []
    return f"{method} ({', '.join(details)})" if details else method
