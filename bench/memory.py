"""Peak memory of a step over that of evaluating the same batch, and of loading a model over the model.

Run: python -m bench.memory [methods [mezo lozo ...]]
OPT-125m shape, all parameters trained, 16 examples of 62 tokens. Every figure is taken in a process of its own: the
peak of resident memory (VmHWM, set back before the measured part) and the peak of what torch's allocator held. Both
processes have loaded the same libraries, the noise kernels included. glibc is told to give freed blocks back: by
default it keeps blocks of up to 32 MB as it happens, which moves the resident figures by up to a tenth.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.common import compare, report
from bench.peak import MIB, allocator_peak, resident, tensors_held
from bench.workload import Step, model_of, step_of
from justforward.optim.methods import METHODS

RUNS = 3
"""Processes per figure; the median counts."""

FEWER = {"subzero+": 9}
"""Directions of a step, where the method's own number takes minutes; what it holds at once does not depend on it."""

FREEING = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "100000"}

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def forget_scratch(made: Step) -> None:
    """Give back what the first step left for the next, so that it counts as the step's."""
    made.mezo.probe.modules.scratch.buffers.clear()  # type: ignore[union-attr]


def child(what: str, dtype: str) -> dict[str, float]:
    """The figures of this process: "evaluate" or "step" on a batch."""
    made = step_of(dtype=DTYPES[dtype])
    forget_scratch(made)
    run = made.run if what == "step" else made.measure
    weights = sum(p.numel() * p.element_size() for p in made.model.parameters()) / MIB
    Path("/proc/self/clear_refs").write_text("5")
    for _ in range(3):
        with torch.no_grad():
            run()
    peak = resident("VmHWM")
    forget_scratch(made)
    with torch.no_grad():
        return {"rss": peak, "allocator": weights + allocator_peak(run)}


def loading(folder: str, dtype: str) -> dict[str, float]:
    """Peak of resident memory while a saved model is loaded, beyond what the process had, and the model's size."""
    from justforward.models.loading import load

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    loaded = load(folder, dtype=DTYPES[dtype])
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters()) / MIB
    return {"rss": resident("VmHWM") - before, "weights": weights}


def child_of(method: str) -> dict[str, float]:
    """The figures of this process for a method's step: memory, and its time as the machine happens to be."""
    chosen = METHODS[method]
    settings: dict[str, Any] = {"distribution": chosen.distribution, "samples": FEWER.get(method)}
    made = step_of(dtype=torch.bfloat16, zo_method=method, **settings)
    made.run()
    forget_scratch(made)
    weights = sum(p.numel() * p.element_size() for p in made.model.parameters()) / MIB
    held = tensors_held()
    step = held + allocator_peak(made.run)
    forget_scratch(made)
    with torch.no_grad():
        evaluation = weights + allocator_peak(made.measure)
    made.mezo.rewind()
    first = tensors_held() + allocator_peak(made.run)
    timed = {"two forwards": made.two_forwards, "step": made.run}
    figure, runs = "methods: time of a step on a busy machine, OPT-125m, bf16", 3 if chosen.forwards == 2 else 1
    facts = {"method": method, "forwards": made.mezo.forwards_per_step}
    ratio: Any = compare(figure, timed, runs=runs, warmup=0, **facts)["ratio"]
    return {
        "step": step,
        "first step": first,
        "evaluation": evaluation,
        "weights": weights,
        "held beside the weights": held - weights,
        "state": made.mezo.state_bytes / MIB,
        "forwards": made.mezo.forwards_per_step,
        "step/two forwards": ratio["step/two forwards"],
    }


def methods(names: Sequence[str] = ()) -> None:
    """Print the figures of some methods, or of every one."""
    for name in names or METHODS:
        found = in_a_process("method", name, runs=1)
        ratio, forwards = found.pop("step/two forwards"), found.pop("forwards")
        report(
            "peak memory: methods, OPT-125m, bf16",
            method=name,
            ratio={
                f"{step}/evaluation": round(found[step] / found["evaluation"], 4) for step in ("step", "first step")
            },
            state_bytes=round(found["state"] * MIB),
            mib={key: round(value, 2) for key, value in found.items()},
            forwards=forwards,
            step_over_two_forwards_on_a_busy_machine=ratio,
        )


def in_a_process(*words: str, runs: int = RUNS) -> dict[str, float]:
    """Run this module with these words, several times; the medians of the figures it prints."""
    command, environment = [sys.executable, "-m", "bench.memory", *words], {**os.environ, **FREEING}
    ran = [
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.splitlines()[-1]
        for _ in range(runs)
    ]
    found = [json.loads(line) for line in ran]
    return {k: statistics.median(f[k] for f in found) for k in found[0]}


def main() -> None:
    """Print the figures."""
    for dtype in DTYPES:
        step, evaluation = in_a_process("step", dtype), in_a_process("evaluate", dtype)
        ratio = {f"step/evaluation, {k}": round(step[k] / evaluation[k], 4) for k in step}
        report(f"peak memory: OPT-125m, {dtype}", ratio=ratio, goal=1.02, mib={"step": step, "evaluation": evaluation})
    with tempfile.TemporaryDirectory() as folder:
        save(folder)
        for dtype in DTYPES:
            found = in_a_process("load", dtype, folder)
            ratio = {"loading/weights, rss": round(found["rss"] / found["weights"], 3)}
            report(f"peak memory of loading: OPT-125m saved in fp32, as {dtype}", ratio=ratio, mib=found)
    methods()


def save(folder: str, shape: str = "125m") -> None:
    """A model of random weights with a tokenizer beside it."""
    tokenizer = Path(__file__).parents[1] / "tests" / "fixtures" / "tiny-opt-4k"
    model_of(shape).save_pretrained(folder)  # type: ignore[operator]
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (Path(folder) / name).write_bytes((tokenizer / name).read_bytes())


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "methods":
        methods(sys.argv[2:])
    elif sys.argv[1] == "method":
        print(json.dumps(child_of(sys.argv[2])))
    else:
        what, dtype, *rest = sys.argv[1:]
        print(json.dumps(loading(rest[0], dtype) if what == "load" else child(what, dtype)))
