"""Seconds per step as models and batches grow, and their plot.

Run: python -m bench.growth [PLOT.png]
OPT shapes of 25, 125 and 350 million weights; 8 to 64 examples of two one-token options of 62 tokens; fp32 and bf16.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from pathlib import Path

import torch

from bench.common import report
from bench.workload import step_of

MODELS, EXAMPLES = ("25m", "125m", "350m"), (8, 16, 32, 64)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(shape: str, examples: int, dtype: torch.dtype, rounds: int = 3) -> tuple[float, float]:
    """Median seconds of a step and of its two forward passes."""
    made = step_of(shape, examples=examples, dtype=dtype)
    steps, forwards = [], []
    for _ in range(rounds):
        for run, times in ((made.run, steps), (made.two_forwards, forwards)):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return statistics.median(steps), statistics.median(forwards)


def plot(seconds: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    """Seconds per step by batch size, a line per model, a panel per dtype; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(seconds), figsize=(9, 3.8), sharey=True, layout="constrained")
    for axis, (dtype, by_shape) in zip(axes, seconds.items(), strict=True):
        for shape, by_examples in by_shape.items():
            axis.plot(list(by_examples), list(by_examples.values()), marker="o", label=f"OPT-{shape}")
        axis.set(title=dtype, xlabel="examples per step", xscale="log", yscale="log")
        axis.set_xticks(EXAMPLES, labels=[str(e) for e in EXAMPLES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds per step")
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(path: str = "bench/results/growth.png") -> None:
    """Print one line per model and dtype, and draw the plot."""
    seconds: dict[str, dict[str, dict[int, float]]] = {}
    for name, dtype in DTYPES.items():
        for shape in MODELS:
            both = {examples: measure(shape, examples, dtype) for examples in EXAMPLES}
            seconds.setdefault(name, {})[shape] = {e: step for e, (step, _) in both.items()}
            report(
                f"growth: OPT-{shape}, {name}",
                seconds_per_step={e: round(step, 3) for e, (step, _) in both.items()},
                ratio={f"step/two forwards, {e} examples": round(s / f, 3) for e, (s, f) in both.items()},
            )
            gc.collect()
    plot(seconds, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
