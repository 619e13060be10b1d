"""Runs the parts, each in a process of its own, and says what became of them."""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.common import RESULTS, report
from bench.gpu.listing import BUDGET, PARTS, REHEARSAL, Part, limits, stages
from bench.processes import kill_all

ROOT = Path(__file__).parents[2]


@dataclass
class Outcome:
    """Of a part: how it ended, and the figures that it printed. cause: "" where it came to its end.

    rehearsed: a goal in numbers is none then, for what is timed means nothing.
    """

    name: str
    limit: float
    rehearsed: bool = False
    seconds: float = 0.0
    cause: str = ""
    figures: list[dict] = field(default_factory=list)

    @property
    def judged(self) -> list[dict]:
        """Figures that have a goal."""
        return [f for f in self.figures if "met" in f and not (self.rehearsed and f["goal"] != "equal")]

    @property
    def unmet(self) -> list[str]:
        """Figures that are not what their goals say."""
        return [figure["figure"] for figure in self.judged if not figure["met"]]

    def row(self) -> str:
        """Its line in the table."""
        met = f"{len(self.judged) - len(self.unmet)} of {len(self.judged)}"
        share = f"{self.seconds / self.limit:.0%}"
        return f"{self.name:<11}{self.seconds:>8.1f}{share:>10}{len(self.figures):>9}  {met:<10}{self.cause or 'done'}"


class Child:
    """A process for a part: it imports what it needs at once, and begins when it is told to."""

    def __init__(self, name: str, command: Sequence[str], **environment: str):
        self.name = name
        paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )

    def carry_out(self, limit: float, *, rehearsed: bool = False) -> Outcome:
        """Let it begin, print what it prints, and kill it and all that it started when its time is over."""
        outcome, said, began = Outcome(self.name, limit, rehearsed), [""], time.perf_counter()
        code = 0
        reader = threading.Thread(target=self._read, args=(outcome, said))
        reader.start()
        try:
            self._tell(limit)
            code = self.process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            outcome.cause = f"cut after {limit:.0f} s"
        finally:
            self.end()
        outcome.seconds = time.perf_counter() - began
        reader.join()
        if code:
            outcome.cause = f"failed: {said[0] or f'exit code {code}'}"
        self.process.stdout.close()  # type: ignore[union-attr]
        return outcome

    def _tell(self, limit: float) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it could not import what it needs, which its exit code says
            os.write(self.process.stdin.fileno(), b"%f\n" % limit)
        self.process.stdin.close()

    def _read(self, outcome: Outcome, said: list[str]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            print(line, end="", flush=True)
            if line.startswith('{"figure"'):
                outcome.figures.append(json.loads(line))
            elif line.strip() and ("rror" in line or "rror" not in said[0]):
                said[0] = line.strip()  # the last that tells of an error, or the last

    def end(self) -> None:
        """Nothing of it is left: neither below it, nor of its group, in which orphans stay."""
        kill_all(self.process.pid)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def carry_out(names: Sequence[str], shares: Mapping[str, float], device: str) -> list[Outcome]:
    """All parts; they have the time that those before them left as well, and the next ones import meanwhile."""
    begun, due, outcomes = time.perf_counter(), 0.0, []
    todo = stages(names)
    following = [begin(part, device) for part in todo[0]]
    try:
        for i, stage in enumerate(todo):
            running, following = following, [begin(part, device) for after in todo[i + 1 : i + 2] for part in after]
            left = begun + due - time.perf_counter()
            seconds = [max(1.0, left + shares[part.name]) for part in stage]
            due += max(shares[part.name] for part in stage)
            outcomes += at_once(running, seconds, device)
    finally:
        for child in following:
            child.end()
    return outcomes


def at_once(running: Sequence[Child], seconds: Sequence[float], device: str) -> list[Outcome]:
    """All of these parts, each with a limit of its own; each is reported as it ends."""
    with ThreadPoolExecutor(len(running)) as pool:
        carry = functools.partial(Child.carry_out, rehearsed=device == "cpu")
        outcomes = {pool.submit(carry, child, limit): child for child, limit in zip(running, seconds, strict=True)}
        try:
            for outcome in as_completed(outcomes):
                ended(outcome.result(), device)
        finally:
            for outcome, child in outcomes.items():
                if not outcome.done():
                    child.end()
    return [outcome.result() for outcome in outcomes]


def begin(part: Part, device: str) -> Child:
    """A part's process."""
    environment = part.rehearsed if device == "cpu" else {}
    return Child(part.name, [sys.executable, "-m", "bench.gpu.child", part.name, device], **environment)


def ended(outcome: Outcome, device: str) -> None:
    """The line of a part, in the same file as its figures."""
    report(
        f"part {outcome.name}",
        seconds=round(outcome.seconds, 1),
        limit=round(outcome.limit, 1),
        figures=len(outcome.figures),
        unmet=outcome.unmet,
        ended=outcome.cause or "done",
        device=device,
    )


def main(words: Sequence[str] = ()) -> int:
    """See the package; 1 where a part failed or was cut."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="All figures of a GPU in one call.")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny shapes")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], default=[], metavar="PART",
                        help="; ".join(f"{part.name}: {part.what}" for part in PARTS))  # fmt: skip
    parser.add_argument("--budget", type=float, help=f"seconds, for all parts together: {BUDGET:.0f}, and for a "
                        f"rehearsal, whose cores may be few and busy, {REHEARSAL:.0f}")  # fmt: skip
    given = parser.parse_args(list(words))
    if not given.rehearse and not torch.cuda.is_available():
        print("bench.gpu is left out: there is no CUDA device (--rehearse runs it on the CPU)", file=sys.stderr)
        return 0
    elsewhere = tempfile.mkdtemp(prefix="rehearsal-") if given.rehearse else str(ROOT / "bench" / "results")
    folder = os.environ.setdefault(RESULTS, elsewhere)
    budget = given.budget or (REHEARSAL if given.rehearse else BUDGET)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left running
    began = time.perf_counter()
    outcomes = carry_out(given.parts, limits(given.parts, budget), "cpu" if given.rehearse else "cuda")
    seconds = time.perf_counter() - began
    print(f"\n{'part':<11}{'seconds':>8}{'of limit':>10}{'figures':>9}  {'goals met':<10}ended")
    for outcome in outcomes:
        print(outcome.row())
        print(*(f"    missed: {figure}" for figure in outcome.unmet), sep="\n", end="\n" if outcome.unmet else "")
    print(f"{'all':<11}{seconds:>8.1f}   of {budget:.0f} s; every figure is in {folder}")
    return int(any(outcome.cause for outcome in outcomes))
