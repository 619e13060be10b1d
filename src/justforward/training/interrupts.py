"""Stopping a training at a signal with a checkpoint, at the end of the step.

SIGUSR1 is what a batch system sends before a job's time is over; SIGINT is Ctrl-C.
"""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGUSR1)


class InterruptedTraining(Exception):
    """Training has stopped at a signal, and its checkpoint is saved."""


class SaveOnInterrupt(TrainerCallback):
    """Saves a checkpoint at the end of the step in which a signal arrives, and raises InterruptedTraining.

    A second SIGINT interrupts at once, as it would without this callback. Of several processes it is enough that one
    gets the signal. Signals are caught between the first step and the last only.
    """

    def __init__(self) -> None:
        self.requested = False
        self.stopping = False  # unlike the request, the same in all processes
        self._before: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Catch the signals."""
        self._before = {number: signal.signal(number, self._request) for number in SIGNALS}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint if a signal has arrived."""
        self.stopping = _any_process(self.requested, args.device) if args.world_size > 1 else self.requested
        if self.stopping:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop once the checkpoint is there.

        Not by `should_training_stop`: the Trainer would then finish as if all was done, load the best checkpoint, and
        delete this one where `save_total_limit` is 1.
        """
        if self.stopping:
            self._release()
            raise InterruptedTraining(f"stopped: the checkpoint of step {state.global_step} is in {args.output_dir}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Give the signals back."""
        self._release()

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            self._release()
            raise KeyboardInterrupt
        self.requested = True
        logger.info("%s: saving at the end of this step, then stopping", signal.Signals(number).name)

    def _release(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process of the job says so; all of them must ask."""
    agreed = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(agreed, op=torch.distributed.ReduceOp.MAX)
    return bool(agreed.item())
