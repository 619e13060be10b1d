"""One job, killed with SIGKILL a hundred times and given again each time, against the same job left alone.

Run: python -m bench.kills [--kills 100] [--seed 0] [--steps 400] [--saving no|checkpoints|trajectory] [--fresh 5]
[more arguments of the job, such as --load_bfloat16]. Exit code 1 where weights, log or predictions differ.

Every attempt is a process of its own that runs the whole command line. Importing the libraries takes many times as
long as the tiny model's steps, so most attempts are forks of a process that has imported them and done nothing else;
`--fresh` of them start a new interpreter, as do the undisturbed run and the attempt that ends the job.

Moments are random, of four kinds: "start" (any time before the first step), "step" (after a random number of steps,
anywhere within one), "write" (at most 10 ms after something was written) and "end" (after the last step).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.common import report
from justforward.commands.cli import main as command_line
from justforward.optim.log import FILE_NAME, read

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
# fmt: off
JOB = [
    "--task_name", "SST2", "--model_name", str(FIXTURES / "tiny-opt-4k"), "--data_dir", str(FIXTURES / "golden/data"),
    "--use_cpu", "--disable_tqdm", "--trainer", "zo", "--train_as_classification", "--num_train", "16", "--num_dev",
    "8", "--num_eval", "6", "--train_set_seed", "0", "--per_device_train_batch_size", "8", "--learning_rate", "1e-4",
    "--lr_scheduler_type", "linear", "--weight_decay", "0.1", "--save_model",
]
# fmt: on
STEPWISE = ["--save_strategy", "steps", "--save_steps", "5", "--save_total_limit", "3"]
SAVING = {
    "no": ["--save_strategy", "no"],
    "checkpoints": STEPWISE,
    "trajectory": [*STEPWISE, "--save_trajectory"],
}
AIMS = {"start": 15, "step": 65, "write": 20}
"""Kinds of moments with their weights; the last few kills are of the kind "end"."""
BRIEF = 0.0002
"""Seconds between two looks where the moment matters; without a pause the job would want for the core."""
RECORD = 4
"""Bytes of a step in the log."""
PATIENCE = 600.0
"""Seconds after which an attempt is taken to hang."""


class Attempt:
    """A process that runs the job, once."""

    def __init__(self, words: Sequence[str], output: Path, *, fresh: bool):
        self.started = time.perf_counter()
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _run(words, output, fresh=fresh)

    def over(self) -> bool:
        """Whether it has ended; `code` is then its exit code, or minus the signal."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def until(self, happened: Callable[[], bool], pause: float = 0.002) -> float:
        """Wait until something has happened, or it is over; seconds since it started."""
        while not happened() and not self.over():
            if self.seconds() > PATIENCE:
                self.kill()
                raise SystemExit(f"an attempt has not ended in {PATIENCE:.0f} s")
            time.sleep(pause)
        return self.seconds()

    def seconds(self) -> float:
        """Since it started."""
        return time.perf_counter() - self.started

    def kill(self) -> bool:
        """SIGKILL; whether that is what ended it."""
        if not self.over():
            os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code == -signal.SIGKILL


def _run(words: Sequence[str], output: Path, *, fresh: bool) -> None:
    """The child's part: the command line with its output in a file; never returns."""
    code = 70
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if fresh:
            os.execv(sys.executable, [sys.executable, "-m", "justforward", *words])
        code = command_line(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


@dataclass
class Job:
    """A job in a folder of its own."""

    folder: Path
    arguments: Sequence[str]
    head: int = 0

    @property
    def log(self) -> Path:
        """Its trajectory log."""
        return self.folder / FILE_NAME

    def steps(self) -> int:
        """How many whole records its log holds, by its size: this is asked a thousand times a second."""
        if not self.log.exists():
            return 0
        if self.head == 0:
            self.head = read(self.log).start
        return (self.log.stat().st_size - self.head) // RECORD

    def attempt(self, *, fresh: bool) -> Attempt:
        """Give the command (again)."""
        where = ["--output_dir", str(self.folder), "--result_file", str(self.folder.with_suffix(".json"))]
        return Attempt([*self.arguments, *where], self.output, fresh=fresh)

    @property
    def output(self) -> Path:
        """What the last attempt printed."""
        return self.folder.with_suffix(".out")

    def written(self) -> tuple[int, str, int]:
        """Changes whenever a step is logged, a checkpoint is begun, or a file of the last checkpoint is made."""
        last = self._last_checkpoint()
        return (
            self.log.stat().st_size if self.log.exists() else 0,
            last.name if last else "",
            len(os.listdir(last)) if last else 0,  # noqa: PTH208 - in a busy loop
        )

    def unfinished(self) -> bool:
        """Whether the last checkpoint's saving was cut short: its last file is missing, or not whole."""
        last = self._last_checkpoint()
        try:
            return last is not None and not json.loads((last / "trainer_state.json").read_text())
        except (OSError, ValueError):
            return True

    def _last_checkpoint(self) -> Path | None:
        names = os.listdir(self.folder) if self.folder.exists() else []  # noqa: PTH208
        numbers = [int(name[11:]) for name in names if name.startswith("checkpoint-")]
        return self.folder / f"checkpoint-{max(numbers)}" if numbers else None


@dataclass
class Durations:
    """Seconds, as measured so far: of a start by how it is made (fresh or forked), of a step, of the end."""

    start: dict[bool, float] = field(default_factory=lambda: {True: 8.0, False: 1.0})
    step: float = 0.02
    end: float = 0.5


def whole(job: Job, steps: int) -> Durations:
    """The undisturbed run."""
    attempt = job.attempt(fresh=True)
    first = attempt.until(lambda: job.steps() > 0)
    last = attempt.until(lambda: job.steps() == steps)
    end = attempt.until(lambda: False)
    if attempt.code != 0:
        raise SystemExit(f"the undisturbed run failed:\n{job.output.read_text()}")
    durations = Durations(step=(last - first) / steps, end=end - last)
    durations.start[True] = first
    return durations


@dataclass
class Disturbed:
    """The job that is killed, and what became of every attempt."""

    job: Job
    steps: int
    durations: Durations
    chance: random.Random
    aims: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    shortened: int = 0

    def one(self, aim: str, *, fresh: bool, left: int) -> None:
        """One attempt, killed at a moment of kind `aim`; `left` kills are still to come, this one included."""
        before = self.job.steps()
        attempt = self.job.attempt(fresh=fresh)
        getattr(self, f"_{aim}")(attempt, before, fresh=fresh, left=left)
        killed, after = attempt.kill(), self.job.steps()
        if not killed and attempt.code != 0:
            raise SystemExit(f"attempt after {len(self.lengths)} kills failed:\n{self.job.output.read_text()}")
        self.shortened += after < before
        if killed:
            self.aims[aim] += 1
            self.phases[self._phase(before, after)] += 1
            self.lengths.append(after)

    def _start(self, attempt: Attempt, before: int, *, fresh: bool, left: int) -> None:
        moment = self.chance.uniform(0, self.durations.start[fresh])
        attempt.until(lambda: attempt.seconds() >= moment)

    def _step(self, attempt: Attempt, before: int, *, fresh: bool, left: int) -> None:
        # So many that the steps last until the last kill, on average.
        steps = self.chance.randint(1, max(1, 2 * (self.steps - before) // left - 1))
        self.durations.start[fresh] = attempt.until(lambda: self.job.steps() > before)
        attempt.until(lambda: self.job.steps() >= before + steps)
        self._wait(attempt, self.durations.step)

    def _write(self, attempt: Attempt, before: int, *, fresh: bool, left: int) -> None:
        for _ in range(self.chance.randint(1, 10)):
            seen = self.job.written()
            attempt.until(lambda seen=seen: self.job.written() != seen, pause=BRIEF)
        self._wait(attempt, self.chance.choice((0.0, 0.0001, 0.001, 0.01)))

    def _end(self, attempt: Attempt, before: int, *, fresh: bool, left: int) -> None:
        attempt.until(lambda: self.job.steps() == self.steps)
        # Where all steps were made before, the whole start-up still lies ahead.
        start = self.durations.start[fresh] if before == self.steps else 0.0
        self._wait(attempt, start + self.durations.end)

    def _wait(self, attempt: Attempt, longest: float) -> None:
        moment = attempt.seconds() + self.chance.uniform(0, longest)
        attempt.until(lambda: attempt.seconds() >= moment, pause=BRIEF)

    def _phase(self, before: int, after: int) -> str:
        if self.job.unfinished():
            return "while saving"
        if after == self.steps:
            return "after the last step"
        return "before a step" if after == before else "while training"


def disturb(job: Job, durations: Durations, kills: int, fresh: int, steps: int, seed: int) -> Disturbed:
    """Kill the job `kills` times, then let it end."""
    chance = random.Random(seed)
    run = Disturbed(job, steps, durations, chance)
    fresh_ones = set(chance.sample(range(kills), min(fresh, kills)))
    ends = min(4, kills // 5)
    while len(run.lengths) < kills:
        number = len(run.lengths)
        aim = "end" if number >= kills - ends else chance.choices(list(AIMS), list(AIMS.values()))[0]
        run.one(aim, fresh=number in fresh_ones, left=kills - ends - number)
    last = job.attempt(fresh=True)
    last.until(lambda: False)
    if last.code != 0:
        raise SystemExit(f"the last attempt failed:\n{job.output.read_text()}")
    return run


def equal(a: Job, b: Job) -> dict[str, bool]:
    """Whether two runs are one: logs and predictions to the byte, weights to the bit."""
    weights = [load_file(job.folder / "model.safetensors") for job in (a, b)]
    predictions = [job.folder.with_name(f"{job.folder.name}-predictions.jsonl").read_bytes() for job in (a, b)]
    return {
        "log": a.log.read_bytes() == b.log.read_bytes(),
        "weights": set(weights[0]) == set(weights[1])
        and all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()),
        "predictions": predictions[0] == predictions[1],
    }


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--saving", choices=SAVING, default="no")
    parser.add_argument("--fresh", type=int, default=5, help="attempts that start a new interpreter")
    parser.add_argument("--keep", help="a new folder to work in, which is left as it is")
    return parser.parse_known_args(words)


def _import_libraries() -> None:
    """What forks need not import again."""
    importlib.import_module("justforward.experiment")


def measure(given: argparse.Namespace, more: Sequence[str], folder: Path) -> bool:
    """Both runs, and their figure; whether they are equal."""
    arguments = [*JOB, *SAVING[given.saving], "--max_steps", str(given.steps), *more]
    started = time.perf_counter()
    _import_libraries()
    alone, killed = Job(folder / "whole", arguments), Job(folder / "killed", arguments)
    durations = whole(alone, given.steps)
    run = disturb(killed, durations, given.kills, given.fresh, given.steps, given.seed)
    same = equal(alone, killed)
    report(
        "kills",
        saving=given.saving,
        arguments=list(more),
        seed=given.seed,
        steps=given.steps,
        kills=len(run.lengths),
        aims=dict(run.aims),
        phases=dict(run.phases),
        steps_logged_after_each=run.lengths,
        shortened_logs=run.shortened,
        equal=same,
        accuracy=json.loads(killed.folder.with_suffix(".json").read_text())["accuracy"],
        seconds=round(time.perf_counter() - started),
    )
    return all(same.values()) and run.shortened == 0


def main(words: Sequence[str] = ()) -> None:
    """See the module."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        # A process whose threads have run must not be forked: one that never starts any is.
        command = [sys.executable, "-m", "bench.kills", *words]
        if code := subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode:
            raise SystemExit(code)
        return
    given, more = parse(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.keep or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if not measure(given, more, folder):
            raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
