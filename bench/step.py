"""A MeZO step: against the textbook's, against its own two forward passes, and against what the machine allows.

Run: python -m bench.step [ROUNDS]
OPT-125m shape, random weights, classification with two one-token options of 62 tokens, 16 examples unless said.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch

from bench.common import compare, report
from bench.workload import TOKENS, Step, step_of
from justforward.noise import backend

FP32, BF16 = torch.float32, torch.bfloat16
NAMES = {FP32: "fp32", BF16: "bf16"}


def against_textbook(rounds: int) -> None:
    """Textbook fp32 / ours, in fp32 and in bf16."""
    reference = step_of(dtype=FP32)
    for dtype, goal in ((FP32, 4), (BF16, 8)):
        ours = reference if dtype == FP32 else step_of(dtype=dtype)
        compare(
            f"step: textbook fp32 / ours {NAMES[dtype]}",
            {"ours": ours.run, "textbook": reference.textbook},
            runs=rounds,
            goal=goal,
        )


def overhead(rounds: int) -> None:
    """A whole step over two forward passes on the same plan."""
    cases = [
        ("full", FP32, "gaussian", 1.05),
        ("full", BF16, "gaussian", 1.10),
        ("full", FP32, "rademacher", None),
        ("full", BF16, "rademacher", None),
        ("lora", FP32, "gaussian", 1.03),
        ("prefix", FP32, "gaussian", 1.03),
    ]
    for method, dtype, distribution, goal in cases:
        made = step_of(dtype=dtype, method=method, distribution=distribution)
        _over_forwards(f"step / two forwards: {method}, {NAMES[dtype]}, {distribution}", made, rounds, goal)
        if method == "full" and distribution == "gaussian":
            floor(made, dtype)
        del made
        gc.collect()


def methods(rounds: int) -> None:
    """Other directions; of each example one of its own."""
    for name, goal in (("eggroll", 1.05), ("grzo", None), ("lozo", None), ("subzero", None)):
        made = step_of(dtype=BF16, zo_method=name)
        _over_forwards(f"step / two forwards: full, bf16, {name}", made, rounds, goal)
        del made
        gc.collect()


def small_batches(rounds: int) -> None:
    """Where both signs go in one forward: few tokens."""
    for method in ("full", "lora"):
        for examples in (1, 4):
            made = step_of(method=method, examples=examples)
            _over_forwards(f"step / two forwards: {method}, fp32, {examples} examples", made, rounds, None)


def compiled(rounds: int) -> None:
    """torch.compile: a step of a compiled model (probes by copy) against one that is not."""
    plain, made = step_of(), step_of(probe="copy", compiled=True)
    compare(
        "step: torch.compile / plain, fp32",
        {"plain": plain.run, "torch.compile": made.run},
        runs=rounds,
    )


def _over_forwards(figure: str, made: Step, rounds: int, goal: float | None) -> None:
    contenders = {"two forwards": made.two_forwards, "step": made.run}
    compare(figure, contenders, runs=rounds, goal=goal, paired=made.measure_pair is not None)


def floor(made: Step, dtype: torch.dtype) -> None:
    """The least time that the step's arithmetic takes on this machine, from rates measured here.

    Matrix products: 2 multiply-adds per weight and token, at the rate of the largest product of the model alone. Noise:
    one draw per weight for each probe and one for the update, at the rate of the kernel on weights that stay in cache.
    Everything else (attention, norms, reading weights from memory, Python) is what lies between this and the step.
    """
    hidden = 768
    weight, x = torch.randn(4 * hidden, hidden).to(dtype), torch.randn(16 * TOKENS, hidden).to(dtype)
    product = _seconds(lambda: torch.nn.functional.linear(x, weight)) / (2 * x.numel() * 4 * hidden)
    cached, out = weight[:512].contiguous(), torch.empty_like(weight[:512])
    noise = backend("cpu")
    probed = _seconds(lambda: noise.perturb(out, cached, 0, 1e-3)) / cached.numel()
    rounding = "nearest" if dtype == FP32 else "stochastic"
    updated = _seconds(lambda: noise.add_([out], [0], 1e-6, rounding=rounding)) / cached.numel()
    layers = [m for n, m in made.model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    matrices = sum(m.weight.numel() for m in layers)
    everything = sum(p.numel() for p in made.model.parameters())
    forwards = 2 * 2 * matrices * 16 * TOKENS * product
    drawn = 2 * matrices * probed + everything * updated
    report(
        f"floor of a step: full, {NAMES[dtype]}, gaussian",
        milliseconds={"matrix products": round(1e3 * forwards, 1), "noise": round(1e3 * drawn, 1)},
        ratio={"(products + noise)/products": round((forwards + drawn) / forwards, 3)},
        rates={
            "GFLOP/s": round(1e-9 / product, 1),
            "ns per drawn weight, probe": round(1e9 * probed, 3),
            "ns per drawn weight, update": round(1e9 * updated, 3),
        },
    )


def _seconds(run: Callable[[], object], rounds: int = 30) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main(rounds: int = 5) -> None:
    """Print every figure."""
    against_textbook(max(3, rounds // 2))
    overhead(rounds)
    methods(rounds)
    small_batches(rounds)
    compiled(rounds)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
