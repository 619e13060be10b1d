"""Whose result a file holds, and where one goes so that none of another job is replaced."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

OUTPUT = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "result_file", "tag", "run_name", "verbose"),
    *("save_model", "save_on_interrupt", "save_trajectory", "save_total_limit"),
    *("logging_steps", "logging_first_step", "report_to", "disable_tqdm"),
}
"""Arguments that say where a job's files lie and what it shows, and not what comes out."""


def arguments(command: str | None) -> dict[str, str]:
    """The arguments of a command line, by name; {} where it cannot be read."""
    try:
        words = shlex.split(command or "")
    except ValueError:
        return {}
    found: dict[str, list[str]] = {}
    name = ""
    for word in words[1:]:
        if word.startswith("--"):
            name, _, given = word.removeprefix("--").partition("=")
            found[name] = [given] if given else []
        else:
            found.setdefault(name, []).append(word)
    return {name: " ".join(given) for name, given in sorted(found.items())}


def identity(command: str | None) -> dict[str, str]:
    """What tells a job from others: its arguments without those of its output, but with a checkpoint it starts from."""
    given = arguments(command)
    start = given.get("resume_from_checkpoint", "True")
    kept = {name: value for name, value in given.items() if name not in OUTPUT}
    return kept if start.lower() in ("true", "false") else {**kept, "resume_from_checkpoint": start}


def place(path: Path, command: str, *, named: bool) -> Path:
    """Where the result of the job with this command goes, if `path` is what it asks for; another job's is kept.

    named: the user has named the file. Then the result that it holds moves aside, with its predictions; else this
    job's goes beside it, to a name that it gets each time. A line says so.
    """
    ours = identity(command)
    own = _beside(path, ours)
    if not named and own.exists():
        return own
    data = path.read_bytes() if path.is_file() else b""
    if not data.strip():
        return path
    theirs = _identity_of(data)
    differing = sorted(name for name in {**ours, **(theirs or {})} if ours.get(name) != (theirs or {}).get(name))
    if theirs is not None and not differing:
        return path
    told = "its file does not tell which" if theirs is None else f"it differs in {', '.join(differing)}"
    if not named:
        logger.warning("%s holds the result of another job (%s): this one goes beside it", path, told)
        return own
    aside = _beside(path, {"file": hashlib.sha256(data).hexdigest()} if theirs is None else theirs)
    logger.warning("%s held the result of another job (%s), which is kept as %s", path, told, aside)
    if predictions(path).exists():
        predictions(path).replace(predictions(aside))
    path.replace(aside)
    return path


def predictions(path: Path) -> Path:
    """The file of a result's predictions."""
    return path.with_name(f"{path.stem}-predictions.jsonl")


def _beside(path: Path, job: Mapping[str, str]) -> Path:
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:8]
    return path.with_name(f"{path.stem}-{digest}{path.suffix}")


def _identity_of(data: bytes) -> dict[str, str] | None:
    """The job of a result file's bytes; None where they do not tell, as those of older versions."""
    try:
        value: Any = json.loads(data)
        command = value["run"]["command"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return identity(command) if isinstance(command, str) else None
