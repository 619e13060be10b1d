"""Many measurements side by side, each a process of its own: for a machine of many cores, or a GPU.

Run: python -m bench.parallel [--jobs 12] [--limit SECONDS] -- methods --tasks sentences --device cuda \
        -- contenders mezo-lora backpropagation-lora --jobs 3
What follows a "--" is a module of bench with its words. One that tells its `parts` is split into them (a method on a
task, a contender), and they are begun in the order given, as many at a time as there are jobs; one that has --jobs of
its own counts as so many. Every process has one thread. Figures are printed and kept as they come, all else that a
process prints only where it fails. When the time is over what still runs is killed with all that it started, and what
was cut, and what was not begun, is told. Seconds are those of processes that share a machine.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import kill_all

ROOT = Path(__file__).parents[1]
LAST = 20
"""Lines that are shown of a process that failed."""


@dataclass
class Job:
    """A process. words: of its module, its name first."""

    words: Sequence[str]
    command: Sequence[str]
    log: int = field(default_factory=lambda: os.memfd_create("log"))
    began: float = field(default_factory=time.monotonic)
    _read: int = 0

    def __post_init__(self) -> None:
        paths = [str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT, env=environment
        )

    @property
    def width(self) -> int:
        """How many jobs it counts as."""
        return width(self.words)

    def lines(self) -> list[str]:
        """All that it has printed; of the last line only what is whole."""
        text = os.pread(self.log, os.fstat(self.log).st_size, 0).decode(errors="replace")
        return text.split("\n")[:-1]

    def pass_on(self) -> None:
        """Print the figures that have come since the last time."""
        lines = self.lines()
        for line in lines[self._read :]:
            if line.startswith('{"figure"'):
                print(line, flush=True)
        self._read = len(lines)

    def end(self) -> bool:
        """Say how it ended, and whether it failed."""
        self.pass_on()
        seconds, code = time.monotonic() - self.began, self.process.returncode
        say(f"{'failed' if code else 'done'} after {seconds:.0f} s: {shlex.join(self.words)}")
        if code:
            say(*(f"    {line}" for line in self.lines()[-LAST:]), f"    exit code {code}")
        return bool(code)


def run(todo: Sequence[tuple[Sequence[str], Sequence[str]]], jobs: int, limit: float | None = None) -> int:
    """Run pairs of words and a command; returns how many failed, were cut or did not begin."""
    waiting, running, lost = list(todo), list[Job](), 0
    over = time.monotonic() + limit if limit is not None else None
    try:
        while waiting or running:
            while waiting and (not running or sum(job.width for job in running) + width(waiting[0][0]) <= jobs):
                running.append(Job(*waiting.pop(0)))
            time.sleep(0.1)
            for job in list(running):
                job.pass_on()
                if job.process.poll() is not None:
                    running.remove(job)
                    lost += job.end()
            if over is not None and time.monotonic() > over:
                break
        return lost + len(running) + len(waiting)
    finally:
        for job in running:
            kill_all(job.process.pid)
            job.process.wait()
            job.pass_on()
            say(f"cut after {time.monotonic() - job.began:.0f} s: {shlex.join(job.words)}")
        say(*(f"not begun: {shlex.join(words)}" for words, _ in waiting))


def width(words: Sequence[str]) -> int:
    """How many jobs a command counts as."""
    return int(words[list(words).index("--jobs") + 1]) if "--jobs" in words else 1


def split(words: Sequence[str]) -> list[list[str]]:
    """A module's words as those of its parts."""
    name, *others = words
    module = importlib.import_module(f"bench.{name}")
    return [[name, *part] for part in module.parts(others)] if hasattr(module, "parts") else [list(words)]


def groups(words: Sequence[str]) -> list[list[str]]:
    """What stands before the first "--", and between one and the next."""
    found: list[list[str]] = [[]]
    for word in words:
        found.append([]) if word == "--" else found[-1].append(word)
    return found


def say(*lines: str) -> None:
    """What is no figure."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def main(words: Sequence[str] = ()) -> int:
    """See the module; 1 where something failed, was cut or did not begin."""
    own, *modules = groups(words)
    parser = argparse.ArgumentParser(description="Many measurements side by side: options -- MODULE ... -- MODULE ...")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) - 2), help="processes at a time")
    parser.add_argument("--limit", type=float, help="seconds for everything")
    given, began = parser.parse_args(own), time.monotonic()
    todo = [part for module in modules for part in split(module)]
    commands = [[sys.executable, "-m", f"bench.{name}", *others] for name, *others in todo]
    left = None if given.limit is None else given.limit - (time.monotonic() - began)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left running
    return int(run(list(zip(todo, commands, strict=True)), given.jobs, left) > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
