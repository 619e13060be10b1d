"""A guided run rebuilt from its log: one forward pass per step over the task's data, and nothing measured."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from justforward.assembly import Assembly, sets_of, task_of, training_arguments
from justforward.command_line.arguments import Parsed, parse
from justforward.models.fingerprint import fingerprint
from justforward.models.loading import LoadedModel
from justforward.models.logged import steps_of
from justforward.optim.log import LogError, Trajectory
from justforward.tasks import Sample, Task
from justforward.training.guided_trainer import GuidedTrainer
from justforward.training.objectives import rows_fingerprint


class StopAt(TrainerCallback):
    """Ends a training after so many steps, without changing its schedule."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See the class."""
        control.should_training_stop = control.should_training_stop or state.global_step >= self.step


def replay_guided(log: Trajectory, given: argparse.Namespace) -> LoadedModel:
    """The model after step `given.to` of a guided run; on the same kind of device, to the bit.

    Raises ValueError, in one line, where the task's data or the base model is not here, or is another.
    """
    to = steps_of(log, given.to)
    with tempfile.TemporaryDirectory(prefix="justforward-replay-") as folder:
        parsed = _parsed(log, given, folder)
        task, train, dev = _rows(log, parsed)
        quiet: dict[str, Any] = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
        use_cpu = {"use_cpu": True} if given.device == "cpu" else {}
        arguments = training_arguments(parsed, report_to="none", **quiet, **use_cpu)
        parts = Assembly(parsed.job, arguments, task)
        loaded = parts.build()
        if fingerprint(loaded.model) != log.header["base"]:
            raise ValueError(
                f"{log.path}: {parsed.job.model_name} is not the model that this run started from (their weights "
                "differ): give the right one with --model"
            )
        evaluator = parts.evaluator(loaded)
        objective = parts.objective(evaluator)
        examples, others = (
            [objective.encode(evaluator.encoder, sample) for sample in samples] for samples in (train, dev)
        )
        if rows_fingerprint(examples) != log.header["rows"]:
            raise ValueError(
                f"{log.path}: the task's data is not what this run was trained on: give it with --data_dir"
            )
        # What is kept depends in its last bits on what is computed beside it.
        parts.keep_states(loaded, evaluator.engine, [row for one in examples + others for row in one.rows], [])
        if to == 0:
            return loaded
        _, more = parts.trainer({}, [])
        trainer = GuidedTrainer(
            model=loaded.model,
            args=arguments,
            objective=objective,
            engine=evaluator.engine,
            train_dataset=examples,
            processing_class=loaded.tokenizer,
            callbacks=[StopAt(to)],
            **{**more, "logged": log.steps[:to]},
        )
        trainer.train()
        return loaded


def _parsed(log: Trajectory, given: argparse.Namespace, folder: str) -> Parsed:
    """The run's own arguments, with what does not change its steps left out."""
    words = log.header.get("command")
    if not words:
        raise LogError(f"{log.path}: does not tell its command, which a guided run is rebuilt by")
    places = {"output_dir": folder, "model_name": given.model, "data_dir": given.data_dir}
    more = [word for name, value in places.items() if value for word in (f"--{name}", value)]
    try:
        return parse([*words, *more])
    except ValueError as error:
        raise _not_here(log, error) from None


def _not_here(log: Trajectory, error: ValueError) -> ValueError:
    return ValueError(f"{log.path}: a guided run is rebuilt with its task's data, and: {error}")


def _rows(log: Trajectory, parsed: Parsed) -> tuple[Task, list[Sample], list[Sample]]:
    """The task, and the rows that were drawn for training and for development."""
    job = parsed.job
    try:
        task = task_of(job)
        splits = task.load(job.data_dir)
        sets = sets_of(job, splits)
    except ValueError as error:
        raise _not_here(log, error) from None
    seed = log.header["job"]["train_set"]
    drawn = next((one for one in sets if one.seed == seed), None)
    if drawn is None:
        raise ValueError(f"{log.path}: the task's data is not what this run was trained on: give it with --data_dir")
    return task, [splits.train[i] for i in drawn.train], [splits.train[i] for i in drawn.dev]
