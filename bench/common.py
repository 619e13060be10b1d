"""Interleaved A/B timing and the one JSON line that every figure is reported in."""

from __future__ import annotations

import datetime
import json
import operator
import os
import platform
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = "JUSTFORWARD_BENCH_RESULTS"
"""Environment variable: a folder to which every figure is appended."""

PACKAGES = ("justforward", "torch", "transformers", "numpy", "numba")

COMPARISONS = {">=": operator.ge, "<=": operator.le}


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
    medians = {name: round(statistics.median(values), 2) for name, values in times.items()}
    return report(figure, milliseconds=medians, ratio=_ratios(times, 3), runs=runs, device=device, **facts)


def compare_rates(
    figure: str,
    contenders: Mapping[str, tuple[float, Callable[[], object]]],
    *,
    goal: float | None = None,
    runs: int = 5,
    device: str = "cpu",
    **facts: object,
) -> dict[str, object]:
    """Time contenders that may do different numbers of the same examples, and print what each does per second.

    `contenders` has for each name the examples that one call does, and the call; warm up before. The ratios are the
    medians, over the rounds, of each contender's time for an example over that of the first in the same round: how
    many times as fast the first is, `goal` times or more if all is well.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs):
        for name, (examples, run) in contenders.items():
            seconds[name].append(_milliseconds(run, device) / 1e3 / examples)
    return report(
        figure,
        ratio=_ratios(seconds, 2),
        goal=None if goal is None else f">= {goal:g}",
        examples_per_second={name: round(1 / statistics.median(values), 3) for name, values in seconds.items()},
        examples={name: round(examples, 2) for name, (examples, _) in contenders.items()},
        runs=runs,
        device=device,
        **facts,
    )


def report(figure: str, *, device: str = "cpu", **values: object) -> dict[str, object]:
    """Print one figure, with what it was measured on, as a line of JSON; return it too.

    A goal in words, ">= 4", "<= 1.02" or "equal", is held against every `ratio`, or every `equal`: "met" in the line.
    """
    line = {
        "figure": figure,
        **values,
        **({"met": meets(goal, values)} if isinstance(goal := values.get("goal"), str) else {}),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": _git_hash(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
    print(json.dumps(line), flush=True)
    if folder := os.environ.get(RESULTS):
        with results_file(Path(folder), line).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    return line


def meets(goal: str, values: Mapping[str, Any]) -> bool:
    """Whether a figure's numbers are what its goal says."""
    if goal == "equal":
        return all(values["equal"].values())
    sign, number = goal.split()
    return all(COMPARISONS[sign](ratio, float(number)) for ratio in values["ratio"].values())


def results_file(folder: Path, line: Mapping[str, object]) -> Path:
    """Where a figure is kept: a file per date and hardware."""
    folder.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^A-Za-z0-9]+", "-", str(line["device"])).strip("-")
    return folder / f"{line['date']}-{device}-{line['threads']}-threads.jsonl"


def _ratios(times: Mapping[str, list[float]], digits: int) -> dict[str, float]:
    """Each contender's time over that of the first in the same round, the median."""
    first, *others = times
    rounds = {name: zip(times[first], times[name], strict=True) for name in others}
    return {f"{name}/{first}": round(statistics.median(b / a for a, b in rounds[name]), digits) for name in others}


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


def _version(name: str) -> str:
    """Of a package; "" where it is imported from a folder that nobody installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _git_hash() -> str:
    """Short hash of HEAD, with "+" where tracked files differ from it; "" outside a checkout, and without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
