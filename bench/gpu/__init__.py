"""All figures of one GPU in one call of eight minutes, and a rehearsal of the call on a CPU.

Run: python -m bench.gpu [--rehearse] [--parts step bits ...] [--budget SECONDS]
Every part (bench/gpu/listing.py) is a process of its own with a limit of its own; one that fails or is cut is a line of
its own, and the next one starts. Every figure is printed and kept as it comes: in JUSTFORWARD_BENCH_RESULTS, or in
bench/results. `--rehearse` runs the same lines on a CPU, with tiny shapes; where Triton is installed (it need not be
anywhere else) the noise kernel runs in its interpreter. What a rehearsal times means nothing, and is kept only where
JUSTFORWARD_BENCH_RESULTS says. Without a CUDA device and without --rehearse it says so and does nothing.
"""

from bench.gpu.runner import main

__all__ = ["main"]
