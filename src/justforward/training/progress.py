"""What a training shows while it runs, and how long its steps take.

On a terminal: one bar with the loss, a sparkline of the last losses, the accuracy of the last evaluation, steps per
second and the time left. Elsewhere (a pipe, a batch system's file): one plain line per log entry.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import has_length

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_LOSSES = 30
FIXED_WIDTH = 66
"""Columns that the line needs beside the sparkline and the two numbers of steps; what is left is the bar's."""
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def show_progress(trainer: Trainer) -> StepTimer:
    """Put our bar, or plain lines where there is no terminal, in the place of transformers' bar; and time the steps."""
    timer = StepTimer()
    trainer.add_callback(timer)
    # Absent under --disable_tqdm, and in a notebook, which has a display of its own.
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ProgressBar() if sys.stderr.isatty() else PrinterCallback())
    return timer


class StepTimer(TrainerCallback):
    """Measures the mean time of a step. The first step, and those with an evaluation or a checkpoint, do not count."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._last: float | None = None

    @property
    def seconds_per_step(self) -> float | None:
        """Mean seconds of the steps that count; None before there is one."""
        return self.seconds / self.steps if self.steps else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """From the end of the step before: so waiting for a device at the log is part of it."""
        now = time.perf_counter()
        if self._last is not None:
            self.seconds += now - self._last
            self.steps += 1
        self._last = now

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The step that follows is not timed from here."""
        self._last = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """As after an evaluation."""
        self._last = None


class ProgressBar(TrainerCallback):
    """One bar on stderr; evaluations leave a line on stdout, and where that is a file, all log entries do."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=MOST_LOSSES)
        self.accuracy: float | None = None
        self.bar: tqdm | None = None
        self.evaluation: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Open the bar, where a continued run stands."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit=" steps", bar_format=BAR, dynamic_ncols=True
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move it."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """A second bar while there is an evaluation."""
        if self.bar is not None and has_length(eval_dataloader):
            if self.evaluation is None:
                total = len(eval_dataloader)
                self.evaluation = tqdm(total=total, desc="evaluation", unit=" batches", leave=False, dynamic_ncols=True)
            self.evaluation.update()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take it away."""
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Show what is logged."""
        if self.bar is None or not logs:
            return
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))
        self.accuracy = logs.get("eval_accuracy", self.accuracy)
        self.bar.set_postfix_str(self._postfix(self.bar), refresh=False)
        if not sys.stdout.isatty():
            tqdm.write(str({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in logs.items()}))
        elif measured := [k for k in logs if k.startswith("eval_") and not k.endswith(("runtime", "per_second"))]:
            values = ", ".join(f"{k.removeprefix('eval_')} {logs[k]:.4g}" for k in measured)
            tqdm.write(f"step {state.global_step}, evaluation: {values}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _postfix(self, bar: tqdm) -> str:
        parts = []
        if self.losses:
            room = (bar.ncols or 80) - FIXED_WIDTH - 2 * len(str(bar.total))
            line = _printable(sparkline(list(self.losses)[-room:] if room > 0 else []))
            parts.append(f"loss {self.losses[-1]:.4f} {line}".rstrip())
        if self.accuracy is not None:
            parts.append(f"acc {self.accuracy:.3f}")
        return ", ".join(parts)


def sparkline(values: Sequence[float]) -> str:
    """One block per value, from the least to the greatest; a space for one that is not finite."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    steps = len(BLOCKS) - 1
    span = high - low
    heights = [round((v - low) / span * steps) if span else steps // 2 for v in finite]
    blocks = iter(BLOCKS[height] for height in heights)
    return "".join(next(blocks) if math.isfinite(v) else " " for v in values)


def _printable(text: str) -> str:
    """`text`, or nothing where stderr cannot show it."""
    try:
        text.encode(sys.stderr.encoding or "ascii")
    except UnicodeEncodeError:
        return ""
    return text


class _AboveProgressBars(logging.Handler):
    """Writes lines to stderr without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def log_to_stderr(rank: int) -> None:
    """Have the package's lines written there; errors alone on ranks other than the first."""
    package = logging.getLogger("justforward")
    if not package.handlers:
        package.addHandler(_AboveProgressBars())
        package.setLevel(logging.INFO if rank == 0 else logging.ERROR)
        package.propagate = False
