"""The trajectory log in the Hugging Face Trainer: every step is logged, and a run goes on from its log alone.

OUTPUT_DIR/trajectory.log holds the run. A checkpoint may be a mark in that log (`save_trajectory`): instead of weights
it holds `trajectory.json`, and is loaded by replaying the log up to its step. Resuming, and loading the best
checkpoint at the end, work with either kind.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import has_length

from justforward.models.fingerprint import fingerprint
from justforward.models.logged import apply_steps, learning_rates
from justforward.optim import MeZO
from justforward.optim.directions.base import Directions
from justforward.optim.distribution.ranks import gathered
from justforward.optim.log import FILE_NAME, LogError, Trajectory, TrajectoryWriter, difference, read
from justforward.training.checkpoint_trainer import CheckpointMixin
from justforward.training.checkpoints import STATE, checkpoints, damage, read_mark, seal, step_of, write_mark
from justforward.trajectory.recording import (
    UNPREDICTABLE,
    describe_run,
    describe_schedule,
    restore,
    set_schedule,
)

logger = logging.getLogger(__name__)


class TrajectoryMixin(CheckpointMixin):
    """Logs a MeZO run and resumes from the log.

    Args:
        trajectory: False writes no log.
        run_facts: what else pins the run, JSON values for the log's header (the base model's name, the job).
        reload_base: gives the trained parameters' values before the first step, by name; without it a copy of them is
            kept while it may be needed.
        save_trajectory: checkpoints hold no weights.
    """

    mezo: MeZO | None = None

    def __init__(
        self,
        *args: Any,
        trajectory: bool = True,
        run_facts: Mapping[str, Any] | None = None,
        reload_base: Callable[[], Mapping[str, Tensor]] | None = None,
        save_trajectory: bool = False,
        **kwargs: Any,
    ):
        self.writes_log, self.run_facts, self.reload_base = trajectory, run_facts, reload_base
        self.save_trajectory = save_trajectory
        self.total_steps = 0
        self._base: str = ""
        super().__init__(*args, **kwargs)
        if trajectory and self.args.lr_scheduler_type in UNPREDICTABLE:
            logger.warning("no trajectory log: the schedule %s depends on evaluation", self.args.lr_scheduler_type)
            self.writes_log = False
        if save_trajectory and not self.writes_log:
            raise ValueError("--save_trajectory needs the trajectory log, which this run does not write")
        self._log = LogCallback(self)
        self.add_callback(self._log)

    @property
    def log_path(self) -> Path:
        """Where the run is logged."""
        return Path(self.args.output_dir or ".") / FILE_NAME

    @property
    def logged_optimizer(self) -> MeZO | None:
        """What appends to the log; None where there is none."""
        return self.mezo if self.writes_log and self.mezo and isinstance(self.mezo.noise, Directions) else None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; `resume_from_checkpoint` may also be a trajectory log: the run goes on where it ends."""
        assert isinstance(self.model, nn.Module)
        if self.writes_log:
            self._base = fingerprint(self.model)
            if self.reload_base is None and (self.save_trajectory or self._is_log(resume_from_checkpoint)):
                kept = {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}
                self.reload_base = lambda: kept
        if self._is_log(resume_from_checkpoint):
            resume_from_checkpoint = self._checkpoint_at_end(Path(str(resume_from_checkpoint)))
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[arg-type]
        finally:
            self._log.close()

    @staticmethod
    def _is_log(resume: str | bool | None) -> bool:
        return isinstance(resume, str) and Path(resume).is_file()

    def _checkpoint_at_end(self, path: Path) -> str | None:
        """A checkpoint folder for the last step of a log: the one that is there, or a new mark."""
        log = read(path)
        log.check()
        folder = Path(self.args.output_dir or ".")
        step = min(gathered(self._before_lost_evaluation(folder, len(log.steps))))
        if step == 0:
            return None
        mark = folder / f"checkpoint-{step}"
        if self.args.should_save:
            self._mark_end(folder, mark, step)
        gathered(None)  # no rank goes on before the mark is there
        logger.info("going on from %s at step %d", path, step)
        return str(mark)

    def _before_lost_evaluation(self, folder: Path, step: int) -> int:
        """The last step up to `step` behind which no evaluation is missing that may choose the best checkpoint.

        The log has none; those up to a checkpoint are in its state. Where epochs are not even, a step too early.
        """
        if not self.args.load_best_model_at_end:
            return step
        known = ((step_of(path) or 0, path) for path in reversed(checkpoints(folder)))
        last = next((at for at, path in known if at <= step and damage(path) is None), 0)
        size = len(self.train_dataset) if has_length(self.train_dataset) else 1  # type: ignore[arg-type]
        epoch = max(1, size // self.get_total_train_batch_size(self.args))
        total = self.args.max_steps if self.args.max_steps > 0 else int(self.args.num_train_epochs * epoch)
        every = epoch if self.args.eval_strategy == "epoch" else self.args.eval_steps or 1
        every = max(1, int(every if every >= 1 else every * total))
        return min(step, (last // every + 1) * every - 1)

    def _mark_end(self, folder: Path, mark: Path, step: int) -> None:
        """Make a checkpoint for the last step of the log, unless there is one that is whole."""
        if damage(mark) is None:
            return
        earlier = [path for path in reversed(checkpoints(folder)) if (step_of(path) or 0) < step]
        whole = next((path for path in earlier if damage(path) is None), None)
        start = next((path for path in earlier if read_mark(path) is None and damage(path) is None), None)
        exportable = [c for c in [*self.callback_handler.callbacks, self.control] if isinstance(c, ExportableState)]
        state = TrainerState(train_batch_size=self.args.train_batch_size, stateful_callbacks=exportable)  # type: ignore[arg-type]
        state.compute_steps(self.args, self.args.max_steps)
        if whole is not None:
            state = TrainerState.load_from_json(str(whole / STATE))
        state.global_step = step
        shutil.rmtree(mark, ignore_errors=True)  # what a kill left of a checkpoint that was being saved
        write_mark(mark, step, start)
        state.save_to_json(str(mark / STATE))
        seal(mark)

    def rebuilt(self, best: Path) -> Path | None:
        """A mark, where the log has the best checkpoint's step."""
        step, own = step_of(best), Path(self.args.output_dir or ".") / best.name
        log = self._own_log() if self.reload_base is not None and self.log_path.is_file() else None
        if step is None or log is None or len(log.steps) < step:
            return None
        if self.args.should_save:
            shutil.rmtree(own, ignore_errors=True)
            write_mark(own, step, None)
        gathered(None)
        return own

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As the Trainer's; the number of steps is part of what pins a run."""
        self.total_steps = num_training_steps
        return super().create_scheduler(num_training_steps, optimizer)

    def header(self) -> dict[str, Any]:
        """What pins this run."""
        assert self.mezo is not None
        schedule = describe_schedule(self.args, self.total_steps)
        return describe_run(self.mezo, schedule, self._base, self.run_facts)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; a checkpoint without weights gets its mark instead."""
        if _internal_call and self._log.writer is not None:
            self._log.writer.sync()  # before the checkpoint: a loss of power must not leave a mark ahead of its log
        if _internal_call and self.save_trajectory and output_dir is not None:
            if self.args.should_save:
                write_mark(Path(output_dir), self.state.global_step, None)
            return
        super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.save_trajectory:  # a mark is loaded by replaying, and the log holds what these are a function of
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        start = _start_of(Path(resume_from_checkpoint))
        if start is not None:  # weights; a mark alone is replayed once there is an optimiser
            super()._load_from_checkpoint(str(start), model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        mark = None if checkpoint is None else read_mark(Path(checkpoint))
        if mark is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        start = _start_of(Path(checkpoint))
        super()._load_optimizer_and_scheduler(None if start is None else str(start))
        self._replay(mark["step"])
        rate = next(itertools.islice(learning_rates(self.header()["schedule"]), mark["step"], None))
        assert self.mezo is not None
        set_schedule(self.lr_scheduler, self.mezo, mark["step"], rate)

    def _load_best_model(self) -> None:
        best = self.sound(Path(str(self.state.best_model_checkpoint)))
        mark = read_mark(best)
        if mark is None:
            super()._load_best_model()
            return
        assert self.mezo is not None
        assert self.reload_base is not None
        assert isinstance(self.model, nn.Module)
        logger.info("replaying the log to the best checkpoint, step %d", mark["step"])
        restore(self.model, self.reload_base())
        self.mezo.rewind()
        self._replay(mark["step"])

    def _replay(self, step: int) -> None:
        """Apply the logged steps from where the optimiser stands up to `step`."""
        assert self.mezo is not None
        log = self._own_log()
        if len(log.steps) < step:
            log.check()
            raise LogError(f"{self.log_path}: holds {len(log.steps)} steps and step {step} is asked for")
        apply_steps(self.mezo, log.header, log.steps[:step], first=self.mezo.steps_done)

    def _own_log(self) -> Trajectory:
        log = read(self.log_path)
        header = json.loads(json.dumps(self.header()))
        if header != log.header:
            raise LogError(f"{self.log_path}: is of another run: {difference(log.header, header)}")
        return log


class Logged(Protocol):
    """A Trainer whose run is logged."""

    @property
    def log_path(self) -> Path:
        """Where."""
        ...

    @property
    def logged_optimizer(self) -> Any:
        """What appends to the log, its `trajectory`; None where there is none."""
        ...

    def header(self) -> dict[str, Any]:
        """What pins the run."""
        ...


class LogCallback(TrainerCallback):
    """Opens the log when training begins, whatever it begins from, and closes it when it ends."""

    def __init__(self, trainer: Logged):
        self.trainer = trainer
        self.writer: TrajectoryWriter | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See the class."""
        trainer, optimizer = self.trainer, self.trainer.logged_optimizer
        if optimizer is None or not args.should_save:
            return
        header = json.loads(json.dumps(trainer.header()))
        resume_at = state.global_step if state.global_step and trainer.log_path.exists() else None
        if state.global_step and resume_at is None:
            logger.warning("no log of the steps before %d: this run writes none", state.global_step)
            return
        try:
            self.writer = TrajectoryWriter(trainer.log_path, header, resume_at=resume_at)
        except LogError as error:  # the weights are a checkpoint's, and their steps are not in this log
            put_aside(trainer.log_path)
            logger.warning("%s; going on from the checkpoint without a log", error)
            return
        optimizer.trajectory = self.writer

    def close(self) -> None:
        """Close the log, whether training has ended or failed."""
        if self.writer is not None:
            self.writer.close()
        if self.trainer.logged_optimizer is not None:
            self.trainer.logged_optimizer.trajectory = None


def put_aside(log: Path) -> None:
    """Keep the log of another run under a name of its own; it is a whole run, and small."""
    names = (f"{log.stem}-{i}{log.suffix}" for i in itertools.count(1))
    name = next(name for name in names if not log.with_name(name).exists())
    log.rename(log.with_name(name))
    logger.info("the log of another run in %s is kept as %s", log.parent, name)


def _start_of(checkpoint: Path) -> Path | None:
    """The checkpoint whose weights `checkpoint` starts from: itself, what its mark names, or None for the base."""
    mark = read_mark(checkpoint)
    if mark is None:
        return checkpoint
    start = None if mark["from"] is None else checkpoint.parent / mark["from"]
    return start if start is not None and damage(start) is None else None
