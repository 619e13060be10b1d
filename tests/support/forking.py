"""Commands whose processes are forked from one that has imported what they need, which takes each of them seconds.

They are commands as users give them, in processes of their own: with their own folder, environment and signals, with
an exit status, with torchrun's restarts. Only Python does not start anew. That commands run without this is said by
those of tests/e2e that srun and a script, by torchrun, start.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RUN = str(Path(__file__).parents[2] / "run.py")
TORCHRUN = ["-m", "torch.distributed.run"]

# The process of the tests cannot be forked: it has threads, and torch computes no gradients in a fork where it has
# computed some before.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "torch.distributed.run",
        "transformers.models.llama.modeling_llama",
        "transformers.models.opt.modeling_opt",
        "justforward.commands.cli",
        "justforward.command_line.arguments",
        "justforward.experiment",
        "justforward.noise.cpu",
    ]
)


class Forked:
    """A running `python [-m torch.distributed.run ...] run.py ...`; has what tests use of a subprocess.Popen.

    `-m MODULE` in the place of run.py calls the module's main with the words that follow.
    """

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], out: Path, errors: Path):
        arguments = (list(command[1:]), folder, dict(environment), out, errors)
        self._process = _SERVER.Process(target=_begin, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit status of a command that has ended."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """The exit status; raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("run.py", timeout)
        return self._process.exitcode

    def terminate(self) -> None:
        """End it, unless it has ended; torchrun ends its ranks."""
        self._process.terminate()


def _begin(words: list[str], folder: Path, environment: dict[str, str], out: Path, errors: Path) -> None:
    for path, stream in ((out, 1), (errors, 2)):
        with path.open("a") as file:
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()  # a model's end is a full collection, which need not visit what was imported
    if words[:2] != TORCHRUN:
        _run(*words)
        return
    run: Any = importlib.import_module("torch.distributed.run")
    start = run.elastic_launch

    def forking(config, entrypoint):
        config.start_method = "fork"
        return start(config, _rank)

    run.elastic_launch = forking  # torchrun forks functions, but its command line takes none
    run.main(words[2:])


def _rank(unbuffered: str, *words: str) -> None:
    # A rank that is forked has inherited what torchrun does at a signal.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert unbuffered == "-u"
    _run(*words)


def _run(script: str, *words: str) -> None:
    if script == "-m":
        importlib.import_module(words[0]).main(*words[1:])
        return
    from justforward.commands.cli import main

    assert script == RUN
    if status := main(list(words)):
        sys.exit(status)
