"""One run: what its result file says of it, and what its file name and its output folder tell where that is silent."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from justforward.results.files import method_name
from justforward.results.places import OUTPUT, arguments

# task-model[-settings][-tag]-set, as results.result_name writes it; where that was another job's, with a digest
_FILE_NAME = re.compile(
    r"(?P<task>[^-]+)-(?P<model>.+?)"
    r"(?:(?:-(?:sfc|icl_sfc|sampleeval\d+|ntrain\d+|ndev\d+))+(?:-(?P<tag>.+))?)?"
    r"-(?:trainset\d+|onetrainpereval)(?:-[0-9a-f]{8})?"
)
_SEED_IN_NAME = re.compile(r"[-_.]?(?:seed|trainset|set)[-_]?\d+")
# Arguments that repeat a run, or say where and how it is run and shown: runs that differ in these alone are averaged.
_NOT_SETTINGS = {
    *OUTPUT,
    *("seed", "data_seed", "train_set_seed", "num_train_sets"),
    *("use_cpu", "no_auto_device", "token_budget", "trust_remote_code", "dataloader_num_workers"),
    # told by task, model and method
    *("task_name", "model_name", "trainer", "lora", "prefix_tuning", "head_tuning", "linear_probing"),
    "non_diff",
}
_METRICS = ("accuracy", "f1")


AXES = {"steps": "step", "forwards": "forward passes", "seconds": "seconds"}
"""What the curves of trainings can be drawn over, and its label."""


@dataclass(frozen=True)
class TrainingLog:
    """What a training left in its output folder.

    history: the Trainer's log entries, their finite numbers alone; gradients: (step, projected gradient).
    """

    folder: Path
    history: list[dict[str, float]] = field(default_factory=list)
    gradients: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One result file.

    value, dev: the task's metric on the evaluation and the development samples, in percent; settings: the arguments
    that make it another experiment, by name; numbers: all of the file's numbers; about: its entry "run"; when: seconds
    since 1970 of the run, or of its file.
    """

    path: Path
    task: str
    model: str
    method: str
    settings: dict[str, str]
    metric: str
    value: float
    dev: float | None
    seed: int | None
    train_set: int | None
    numbers: dict[str, float]
    about: dict[str, Any]
    when: float
    log: TrainingLog | None = None

    @property
    def command(self) -> str | None:
        """The command line, where the file holds it."""
        return text(self.about.get("command"))

    @property
    def seconds_per_step(self) -> float | None:
        """As measured; else from the training's log; else the whole training, evaluations included, by its steps."""
        if "seconds_per_step" in self.numbers:
            return self.numbers["seconds_per_step"]
        rates = [e["steps_per_second"] for e in self.history if e.get("steps_per_second")]
        if rates:
            return 1 / rates[-1]
        steps, seconds = self.numbers.get("train_steps"), self.numbers.get("train_seconds")
        return seconds / steps if steps and seconds else None

    def per_step(self, axis: str) -> float | None:
        """How much of an axis of AXES one step is; None where the run does not tell."""
        if axis == "seconds":
            return self.seconds_per_step
        if axis == "steps":
            return 1.0
        steps, forwards = self.numbers.get("train_steps"), self.numbers.get("forwards")
        return forwards / steps if steps and forwards else None

    @property
    def peak_memory_mib(self) -> float | None:
        """The largest of what the file and the training's log say."""
        found = [e["peak_memory_mib"] for e in [self.numbers, *self.history] if "peak_memory_mib" in e]
        return max(found, default=None)

    @property
    def history(self) -> list[dict[str, float]]:
        """The entries of the training's log, if there is one."""
        return self.log.history if self.log else []


def is_result(value: Any) -> bool:
    """Whether JSON looks like a result file."""
    return isinstance(value, dict) and {"num_eval", "seconds"} <= set(value)


def make_run(path: Path, value: Mapping[str, Any], job: Mapping[str, Any]) -> Run:
    """The run of a result file.

    Args:
        path: the file.
        value: its JSON.
        job: the record in the output folder, {} without one; for result files that do not describe their run.

    Raises ValueError for a file without a metric.
    """
    about = value["run"] if isinstance(value.get("run"), dict) else {}
    metric = next((name for name in (*_METRICS, *value) if name in value), "")
    score, dev = number(value.get(metric)), number(value.get(f"dev_{metric}"))
    if score is None:
        raise ValueError(f"{path}: left out, its {metric or 'metric'} is not a number")
    named = _FILE_NAME.fullmatch(path.stem)
    named = named.groupdict() if named else {}
    train_set = number(value.get("train_set_seed"))
    seed = number(about.get("seed", job.get("seed")))
    return Run(
        path=path,
        task=text(about.get("task")) or text(job.get("task_name")) or named.get("task") or "unknown task",
        model=text(about.get("model")) or text(job.get("model_name")) or named.get("model") or "unknown model",
        method=text(about.get("method")) or (method_name(job) if job else _guess_method(value, named.get("tag") or "")),
        settings=_settings(text(about.get("command"))) or _settings_by_name(path, train_set),
        metric=metric,
        value=100 * score,
        dev=None if dev is None else 100 * dev,
        seed=None if seed is None else int(seed),
        train_set=None if train_set is None else int(train_set),
        numbers={k: v for k, v in ((k, number(v)) for k, v in value.items()) if v is not None},
        about=about,
        when=_when(path, text(about.get("date"))),
    )


def folder_by_name(path: Path) -> list[Path]:
    """Where the output folder of an older result file may be: of its own name, or of that which the scripts give."""
    named = _FILE_NAME.fullmatch(path.stem)
    folders = [path.with_suffix("")]
    if named and named["tag"]:
        folders.append(path.with_name(f"{named['task']}-{named['model']}-{named['tag']}"))
    return folders


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def text(value: Any) -> str | None:
    """A text that is not empty, or None."""
    return value if isinstance(value, str) and value else None


def _guess_method(value: Mapping[str, Any], tag: str) -> str:
    """From what only one trainer writes, and the scripts' tags (mezo-lora-...)."""
    if "penalty" in value:
        return "LP"
    trainer = "zo" if "zero_steps" in value else "regular" if "train_steps" in value else "none"
    words = tag.split("-")
    job = {"trainer": trainer, "num_train": value.get("num_train"), "lora": "lora" in words}
    return method_name({**job, "prefix_tuning": "prefix" in words})


def _settings(command: str | None) -> dict[str, str]:
    """The arguments of a command line, by name, without those that only repeat a run."""
    return {name: given for name, given in arguments(command).items() if name not in _NOT_SETTINGS}


def _settings_by_name(path: Path, train_set: float | None) -> dict[str, str]:
    """The file's name without its seeds; the scripts put the seed at the end of their tags."""
    stem = _SEED_IN_NAME.sub("", path.stem)
    return {"file": stem if train_set is None else stem.removesuffix(f"-{train_set:.0f}")}


def _when(path: Path, date: str | None) -> float:
    try:
        return datetime.fromisoformat(date or "").timestamp()
    except (ValueError, OverflowError, OSError):
        return path.stat().st_mtime
