"""Interleaved A/B timing and the one JSON line that every figure is reported in."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

PACKAGES = ("justforward", "torch", "transformers", "numpy", "numba")


def compare(
    figure: str,
    contenders: Mapping[str, Callable[[], object]],
    *,
    runs: int = 7,
    warmup: int = 1,
    device: str = "cpu",
    **facts: object,
) -> dict[str, object]:
    """Time the contenders in turn, `runs` times round, and print the figure.

    The medians are in milliseconds. The ratios are the medians, over the rounds, of each contender's time over that of
    the first in the same round: so a machine that slows down for a while slows both. `facts` go into the line as given.
    """
    for _ in range(warmup):
        for contender in contenders.values():
            _milliseconds(contender, device)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, contender in contenders.items():
            times[name].append(_milliseconds(contender, device))
    first, *others = times
    ratios = {
        f"{name}/{first}": round(statistics.median(b / a for a, b in zip(times[first], times[name], strict=True)), 3)
        for name in others
    }
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    return report(figure, milliseconds=medians, ratio=ratios, runs=runs, device=device, **facts)


def report(figure: str, *, device: str = "cpu", **values: object) -> dict[str, object]:
    """Print one figure, with what it was measured on, as a line of JSON; return it too."""
    line = {
        "figure": figure,
        **values,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "git": _git_hash(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
    print(json.dumps(line), flush=True)
    return line


def _milliseconds(run: Callable[[], object], device: str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    run()
    _synchronize(device)
    return (time.perf_counter() - start) * 1e3


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _processor() -> str:
    """Maker's name of the CPU and its widest vectors as torch sees them."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(cpuinfo) if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({torch.backends.cpu.get_cpu_capability()})"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _git_hash() -> str:
    """Short hash of HEAD, with "+" where tracked files differ from it; "" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
