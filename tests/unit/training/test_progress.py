"""The line that a training shows, and the time of its steps."""

import io
import sys
import types

import pytest
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from justforward.training import progress
from justforward.training.progress import ProgressBar, StepTimer, show_progress, sparkline


class Screen(io.StringIO):
    """A stream that says whether it is a terminal."""

    encoding = "utf-8"

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True)


@pytest.fixture
def screens(monkeypatch):
    """Puts a pair of screens, terminals or not, in the place of stdout and stderr."""

    def use(terminal):
        made = Screen(terminal), Screen(terminal)
        monkeypatch.setattr(sys, "stdout", made[0])
        monkeypatch.setattr(sys, "stderr", made[1])
        return made

    return use


def train(bar, arguments, *, losses, evaluation=None):
    """What a Trainer would tell the bar of a short training."""
    state, control = TrainerState(max_steps=len(losses)), TrainerControl()
    bar.on_train_begin(arguments, state, control)
    for loss in losses:
        state.global_step += 1
        bar.on_step_end(arguments, state, control)
        bar.on_log(arguments, state, control, logs={"loss": loss, "learning_rate": 0.1})
    if evaluation is not None:
        bar.on_prediction_step(arguments, state, control, eval_dataloader=[1, 2])
        bar.on_evaluate(arguments, state, control)
        bar.on_log(arguments, state, control, logs=evaluation)
    bar.on_train_end(arguments, state, control)


def test_sparkline():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0]) == "▄▄"
    assert sparkline([1.0, float("nan"), 2.0]) == "▁ █"
    assert sparkline([]) == ""


def test_the_bar_shows_losses_and_the_last_accuracy(arguments, screens):
    out, err = screens(True)
    evaluation = {"eval_loss": 0.5, "eval_accuracy": 0.75, "eval_runtime": 1.0, "epoch": 1.0}
    train(ProgressBar(), arguments, losses=[3.0, 2.0, 1.0], evaluation=evaluation)
    assert "loss 1.0000 █▄▁" in err.getvalue().replace("▅", "▄")
    assert "acc 0.750" in err.getvalue()
    assert "3/3" in err.getvalue()
    assert out.getvalue() == "step 3, evaluation: loss 0.5, accuracy 0.75\n"


def test_the_sparkline_gives_way_on_a_narrow_terminal():
    bar = ProgressBar()
    bar.losses.extend([1.0, 2.0] * 15)
    for columns, blocks in (200, 30), (80, 8), (60, 0):
        line = bar._postfix(tqdm(total=100, ncols=columns, file=io.StringIO()))
        assert sum(line.count(block) for block in progress.BLOCKS) == blocks


def test_a_terminal_without_these_characters_shows_none(screens):
    _, err = screens(True)
    err.encoding = "ascii"
    bar = ProgressBar()
    bar.losses.append(1.0)
    assert bar._postfix(tqdm(total=100, ncols=100, file=io.StringIO())) == "loss 1.0000"


def test_a_file_on_stdout_gets_every_log_entry(arguments, screens):
    out, _ = screens(True)
    out.terminal = False
    train(ProgressBar(), arguments, losses=[3.0, 2.0])
    assert out.getvalue() == "{'loss': '3', 'learning_rate': '0.1'}\n{'loss': '2', 'learning_rate': '0.1'}\n"


@pytest.mark.parametrize(
    ("terminal", "before", "after"),
    [
        (True, ProgressCallback, ProgressBar),
        (False, ProgressCallback, PrinterCallback),
        (True, PrinterCallback, PrinterCallback),  # --disable_tqdm
    ],
)
def test_what_takes_the_place_of_the_trainers_bar(terminal, before, after, screens):
    screens(terminal)
    trainer = types.SimpleNamespace(handler=CallbackHandler([before()], None, None, None, None))
    trainer.add_callback, trainer.pop_callback = trainer.handler.add_callback, trainer.handler.pop_callback
    show_progress(trainer)  # type: ignore[arg-type]
    kinds = {type(callback) for callback in trainer.handler.callbacks}
    assert kinds == {StepTimer, after}


def test_the_first_step_evaluations_and_checkpoints_are_not_timed(arguments, monkeypatch):
    now = iter([10.0, 11.0, 13.0, 20.0, 22.0, 30.0])
    monkeypatch.setattr("justforward.training.progress.time.perf_counter", lambda: next(now))
    timer, state, control = StepTimer(), TrainerState(), TrainerControl()
    assert timer.seconds_per_step is None
    events = (
        [timer.on_step_end] * 3 + [timer.on_evaluate] + [timer.on_step_end] * 2 + [timer.on_save, timer.on_step_end]
    )
    for event in events:
        event(arguments, state, control)
    assert (timer.seconds, timer.steps) == (5.0, 3)  # 10 to 11 to 13, and 20 to 22
    assert timer.seconds_per_step == pytest.approx(5 / 3)
