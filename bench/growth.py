"""Seconds per step as models and batches grow, and their plot.

Run: python -m bench.growth [ROUNDS [PLOT.png]]
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


def measure(shape: str, examples: int, dtype: torch.dtype, rounds: int) -> float:
    """Median seconds of a step."""
    made, times = step_of(shape, examples=examples, dtype=dtype), []
    for _ in range(rounds):
        start = time.perf_counter()
        made.run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


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


def main(rounds: str = "1", path: str = "bench/results/growth.png") -> None:
    """Print one line per model and dtype, and draw the plot."""
    seconds: dict[str, dict[str, dict[int, float]]] = {}
    for name, dtype in DTYPES.items():
        for shape in MODELS:
            found = {examples: measure(shape, examples, dtype, int(rounds)) for examples in EXAMPLES}
            seconds.setdefault(name, {})[shape] = found
            report(f"growth: OPT-{shape}, {name}", seconds_per_step={e: round(s, 3) for e, s in found.items()})
            gc.collect()
    plot(seconds, Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
