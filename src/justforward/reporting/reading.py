"""Finding runs on disk: result files, and the output folders that belong to them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from justforward.reporting.runs import Run, TrainingLog, folder_by_name, is_result, make_run, number, text

STATE, JOB, TRAJECTORY = "trainer_state.json", "justforward_job.json", "trajectory.log"
MOST_BYTES = 1_000_000
"""A result file has a few hundred bytes; larger JSON files (tokenizers) are not looked into."""


def read_runs(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """All runs below `paths` (files and folders), and one line for each file that could not be read.

    Raises ValueError for a path that does not exist, and where there is no run at all.
    """
    runs: dict[Path, Run] = {}
    warnings: list[str] = []
    for path, asked in _json_files(paths):
        try:
            value = read_json(path)
            if is_result(value):
                runs[path.resolve()] = _read(path, value, warnings)
            elif asked:
                warnings.append(f"{path}: left out, it is not a result file")
        except ValueError as error:
            warnings.append(str(error))
    if not runs:
        why = f" ({'; '.join(warnings)})" if warnings else ""
        raise ValueError(f"no runs in {', '.join(paths)}: give folders that hold result files, such as result/{why}")
    return _one_run_per_folder(list(runs.values())), warnings


def read_json(path: Path) -> Any:
    """A file's JSON. Raises ValueError, which names the file, where it has none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: left out, it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: left out, its JSON is damaged ({error})") from error


def _json_files(paths: Sequence[str]) -> Iterator[tuple[Path, bool]]:
    """JSON files that may be results, and whether the user named them."""
    for given in paths:
        path = Path(given).expanduser()
        if path.is_file():
            if path.suffix != ".jsonl":  # the predictions, where a shell's pattern took them along
                yield path, True
        elif not path.is_dir():
            raise ValueError(f"{given}: no such file or folder")
        for folder, below, names in os.walk(path):
            below[:] = sorted(name for name in below if not name.startswith((".", "checkpoint-")))
            for name in sorted(names):
                file = Path(folder) / name
                named = name.endswith(".json") and not name.startswith(".") and name not in (STATE, JOB)
                if named and file.is_file() and file.stat().st_size <= MOST_BYTES:
                    yield file, False


def _read(path: Path, value: Mapping[str, Any], warnings: list[str]) -> Run:
    run = make_run(path, value, {})
    if "train_steps" not in run.numbers:
        return run
    for folder in _candidates(path, run):
        if not (folder / STATE).is_file():
            continue
        job = _job(folder, warnings)
        if _belongs(job, run):
            log = _training_log(folder, warnings)
            return dataclasses.replace(run if run.about else make_run(path, value, job), log=log)
    return run


def _candidates(path: Path, run: Run) -> list[Path]:
    """Where the output folder may be: as it was given, from here or from where the results now are."""
    given = text(run.about.get("output_dir"))
    if given is None:
        return folder_by_name(path)
    return [Path(given), *(parent / given for parent in path.parents), path.parent / Path(given).name]


def _job(folder: Path, warnings: list[str]) -> dict[str, Any]:
    try:
        job = read_json(folder / JOB) if (folder / JOB).is_file() else {}
    except ValueError as error:
        warnings.append(str(error))
        job = {}
    return job if isinstance(job, dict) else {}


def _belongs(job: Mapping[str, Any], run: Run) -> bool:
    """Whether the folder's job is this run's: another job may have used the folder since."""
    told = [("train_set", run.train_set)]
    if run.about:
        told += [("task_name", run.task), ("model_name", run.model), ("seed", run.seed)]
    return all(name not in job or job[name] == value for name, value in told)


def _training_log(folder: Path, warnings: list[str]) -> TrainingLog:
    try:
        state = read_json(folder / STATE)
    except ValueError as error:
        warnings.append(str(error))
        state = {}
    entries = state.get("log_history") if isinstance(state, dict) else None
    history = [_numbers(entry) for entry in entries or [] if isinstance(entry, dict)]
    history = [entry for entry in history if "step" in entry]
    gradients = _gradients(folder / TRAJECTORY, warnings)
    if not gradients:
        gradients = [(int(e["step"]), e["projected_grad"]) for e in history if "projected_grad" in e]
    return TrainingLog(folder, history, gradients)


def _numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in ((k, number(v)) for k, v in entry.items()) if v is not None}


def _gradients(path: Path, warnings: list[str]) -> list[tuple[int, float]]:
    """Every finite projected gradient of a trajectory log, up to the first damage."""
    if not path.is_file():
        return []
    from justforward.optim.log import read  # loads torch

    try:
        log = read(path)
    except (OSError, ValueError, KeyError) as error:
        warnings.append(f"{error}" if str(path) in str(error) else f"{path}: left out ({error})")
        return []
    try:
        log.check()
    except ValueError as error:
        warnings.append(f"{error}; the steps before it are shown")
    values = ((step, number(g)) for step, given in enumerate(log.steps, start=1) for g in given)
    return [(step, g) for step, g in values if g is not None]


def _one_run_per_folder(runs: list[Run]) -> list[Run]:
    """A folder's log is that of the last run which used it."""
    last: dict[Path, Run] = {}
    for run in sorted(runs, key=lambda run: run.when):
        if run.log is not None:
            last[run.log.folder.resolve()] = run
    keep = {run.path for run in last.values()}
    return [run if run.path in keep else dataclasses.replace(run, log=None) for run in runs]
