"""Processes below a process, as Linux tells them: to kill one of them, or all."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def children(process: int) -> list[int]:
    """Numbers of the processes that it started and that run now."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # ended meanwhile
            if status.read_text().rsplit(")", 1)[1].split()[1] == str(process):
                found.append(int(status.parent.name))
    return found


def kill_all(process: int) -> None:
    """SIGKILL for it and everything below, whatever sessions they have made for themselves."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)  # so that it starts no others meanwhile
    for child in children(process):
        kill_all(child)
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
