"""One run of a sweep: a job like any other, whose evaluations on the development set are kept as they come."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from justforward import experiment
from justforward.command_line.arguments import Parsed
from justforward.results.files import write_json

FILE_NAME = "evaluations.json"

Report = Callable[[float, int], bool]
"""(loss, step) -> whether to stop the run."""


class Stopped(Exception):
    """The run was stopped at an evaluation."""


@dataclass
class Evaluations:
    """What a run's folder says of it. job: its command line; steps: losses of the development set, by step."""

    job: list[str] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False
    diverged: bool = False

    @classmethod
    def read(cls, folder: Path, job: list[str]) -> Evaluations:
        """Those of a folder; none where it has no such file, or that of another job."""
        try:
            found = cls(**json.loads((folder / FILE_NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(job)
        return found if found.job == job else cls(job)

    def write(self, folder: Path) -> None:
        """Keep them."""
        write_json(folder / FILE_NAME, asdict(self))

    def final(self, *, best: bool) -> dict[str, Any]:
        """The last evaluation, or the one of the best checkpoint where that is what the job keeps."""
        return min(self.steps, key=lambda entry: entry["loss"]) if best else self.steps[-1]


class Watch(TrainerCallback):
    """Evaluates after the last step too, keeps every evaluation, and asks `report` whether to go on."""

    def __init__(self, folder: Path, seen: Evaluations, report: Report):
        self.folder, self.seen, self.report = folder, seen, report

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A run that goes on makes the steps behind its last one again."""
        self.seen.steps = [entry for entry in self.seen.steps if entry["step"] <= state.global_step]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See the class."""
        control.should_evaluate = control.should_evaluate or state.global_step >= state.max_steps

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """See the class."""
        loss = float((metrics or {})["eval_loss"])
        entry = {"step": state.global_step, "loss": loss}
        if "eval_accuracy" in (metrics or {}):
            entry["accuracy"] = float((metrics or {})["eval_accuracy"])
        self.seen.steps.append(entry)
        self.seen.finished = state.global_step >= state.max_steps
        self.seen.diverged = not math.isfinite(loss)
        if self.seen.diverged:
            entry["loss"] = None
        self.seen.write(self.folder)
        if self.seen.diverged or self.report(loss, state.global_step):
            raise Stopped


def run(base: Parsed, values: Mapping[str, float], seed: int, folder: Path, report: Report) -> Evaluations:
    """Run the job with these values, or go on where it was cut off, or read what it found before.

    Raises Stopped where `report` says so.
    """
    job = base.command_line()
    found = Evaluations.read(folder, job)
    if found.finished or found.diverged:
        return found
    kept: dict[str, Any] = {}
    if base.job.train_blocks is not None and base.job.kept_states is None:
        kept["kept_states"] = str(folder.parent / "kept_states")  # which all runs share
    another = (folder / FILE_NAME).exists() and not found.steps  # another job's: its folder is taken over
    for anew in (True,) if another else (False, True):
        parsed = base.with_values(
            {
                **values,
                **kept,
                "seed": seed,
                "no_eval": True,
                "output_dir": str(folder),
                "result_file": str(folder / "result.json"),
                "overwrite_output_dir": anew,
            }
        )
        watch = Watch(folder, Evaluations(job) if anew else found, report)
        try:
            experiment.run(parsed, callbacks=[watch])
        except SystemExit:  # its line has said that the training diverged
            watch.seen.diverged = True
            watch.seen.write(folder)
        except Stopped:
            if not watch.seen.diverged:
                raise
        if watch.seen.finished or watch.seen.diverged:
            return watch.seen
    raise AssertionError(f"{folder}: the run ended without its last evaluation")
