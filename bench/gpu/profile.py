"""One step, to see what to mend: its kernels, what the host does meanwhile, and where it waits for the device."""

from __future__ import annotations

import cProfile
import inspect
import pstats
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from bench import evaluate
from bench.common import report
from bench.gpu.where import Where
from bench.workload import TOKENS, model_of, step_on
from justforward.scoring import ScoringEngine

LINES = 15
CALLS = ("cuda", "cu")
"""How the names of CUDA's own calls begin."""


def measure(where: Where) -> None:
    """A step of all parameters, with few tokens and with many; and the slowest of what is scored."""
    shape = where.pick("1.3b", "thin")
    model = model_of(shape, torch.bfloat16, where.device)
    for tokens, graphs in ((TOKENS, False), (TOKENS, True), (where.pick(399, 99), False)):
        made = step_on(model, tokens=tokens, graphs=graphs and not where.rehearsal)
        what = f"OPT-{shape}, bf16, 16 x {tokens + 1} tokens{', CUDA graphs' if graphs else ''}"
        host(where, what, {"step": made.run, "two forwards": made.two_forwards})
        waits(where, f"a step: {what}", made.run)
        kernels(where, f"a step: {what}", made.run)
        if tokens == TOKENS:
            functions(made.run)
        del made
    engine, scored = ScoringEngine(model), evaluate.scored_workloads(f"OPT-{shape} shape, bf16")[1]
    waits(where, scored.figure, lambda: evaluate.means(engine, scored.rows))
    kernels(where, scored.figure, lambda: evaluate.means(engine, scored.rows))


def host(where: Where, what: str, runs: Mapping[str, Callable[[], object]]) -> None:
    """How long the host takes to launch it, beside how long it takes: alike where launches are what takes long."""
    milliseconds: dict[str, float] = {}
    for name, run in runs.items():
        times = []
        for _ in range(where.pick(5, 1)):
            where.synchronize()
            began = time.perf_counter()
            run()
            launched = time.perf_counter()
            where.synchronize()
            times.append(((launched - began) * 1e3, (time.perf_counter() - began) * 1e3))
        launching, whole = (statistics.median(column) for column in zip(*times, strict=True))
        milliseconds |= {f"{name}, launched": round(launching, 2), name: round(whole, 2)}
    report(f"host and device: {what}", milliseconds=milliseconds, device=where.device)


def waits(where: Where, what: str, run: Callable[[], object]) -> None:
    """Where the host waits for the device."""
    places = where.waits(run)
    report(f"waits in {what}", waits=sum(places.values()), places=places, device=where.device)


def kernels(where: Where, what: str, run: Callable[[], object]) -> None:
    """The kernels with their shares of the device's time, and CUDA's own calls."""
    # Later versions of torch warn that they forget what earlier cycles recorded; here is one.
    more: Any = {"acc_events": True} if "acc_events" in inspect.signature(profile).parameters else {}
    with profile(activities=where.activities(), **more) as recorded:
        run()
        where.synchronize()
    averages: Any = recorded.key_averages()
    own, launches = defaultdict[str, float](float), Counter[str]()
    for one in averages:
        if where.is_kernel(one):
            own[one.key[:90]] += where.own_time(one)
            launches[one.key[:90]] += one.count
    whole = sum(own.values()) or 1.0
    largest = sorted(own, key=lambda name: -own[name])[:LINES]
    calls = {one.key: one.count for one in averages if one.key.startswith(CALLS) and not where.is_kernel(one)}
    for name in largest:
        print(f"{own[name] / whole:7.1%}  {own[name] / 1e3:9.3f} ms  {launches[name]:6d} x  {name}", flush=True)
    report(
        f"kernels of {what}",
        share={name: round(own[name] / whole, 4) for name in largest},
        milliseconds=round(whole / 1e3, 3),
        launches=sum(launches.values()),
        calls=dict(sorted(calls.items(), key=lambda one: -one[1])),
        device=where.device,
    )


def functions(run: Callable[[], object]) -> None:
    """What the host does, as Python's profiler tells it, which makes calls dearer than they are."""
    profiler = cProfile.Profile()
    profiler.runcall(run)
    found: Any = pstats.Stats(profiler)
    for (file, line, name), (_, count, own, whole, _) in sorted(found.stats.items(), key=lambda one: -one[1][2])[
        :LINES
    ]:
        place = f"{'/'.join(Path(file).parts[-3:])}:{line} {name}" if line else name
        print(f"{own * 1e3:9.3f} ms  {whole * 1e3:9.3f} ms with calls  {count:6d} x  {place[:100]}", flush=True)
