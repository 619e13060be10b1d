"""What this machine has, and how fast it is: memory, GPUs, matrix products, draws of noise.

torch is imported where it is needed, so that `justforward doctor` can report one that does not import.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GIB = 1 << 30
LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Where a container's limit of memory stands, or "max"."""


@dataclass(frozen=True)
class Gpu:
    """One visible GPU; memory in bytes."""

    name: str
    memory: int


def gpus() -> list[Gpu]:
    """The GPUs that torch sees."""
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [Gpu(device.name, device.total_memory) for device in found]


def read_gpus(text: str) -> list[int]:
    """Bytes of each GPU of "4x80": four of 80 GiB. Raises ValueError for other texts."""
    if not re.fullmatch(r"[1-9]\d{0,4}x\d{1,7}(\.\d+)?", text):
        raise ValueError(f"argument --gpus: expected COUNTxGIB, as in 4x80, got '{text}'")
    count, size = text.split("x")
    return [int(float(size) * GIB)] * int(count)


def main_memory() -> int:
    """Bytes of main memory, or of the part that a container may use."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = LIMIT.read_text().strip() if LIMIT.is_file() else ""
    return min(installed, int(limit)) if limit.isdigit() else installed


def resident() -> int:
    """Bytes of memory that this process takes now; where the system does not tell, the most that it took."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def matmul_rate(dtype: torch.dtype, *, width: int = 1024, device: str = "cpu", seconds: float = 0.3) -> float:
    """Floating-point operations per second of products [1024, width] x [width, 4 width], 1024 wide on a CPU at most."""
    import torch

    width = min(width, 1024 if device == "cpu" else 8192)
    x = torch.ones(1024, width, dtype=dtype, device=device)
    weight = torch.ones(4 * width, width, dtype=dtype, device=device)

    def product() -> None:
        torch.nn.functional.linear(x, weight)

    return 2 * 1024 * 4 * width * width / _best_seconds(product, seconds, device)


def noise_rate(dtype: torch.dtype, *, device: str = "cpu", seconds: float = 0.2) -> float:
    """Seconds per weight of an update: one draw of z, added in place."""
    import torch

    from justforward.noise import backend

    noise, weight = backend(device), torch.zeros(1 << 22, dtype=dtype, device=device)
    return _best_seconds(lambda: noise.add_([weight], [1], 1e-3), seconds, device) / weight.numel()


def _best_seconds(run: Callable[[], object], seconds: float, device: str) -> float:
    """Shortest time of a call in so many seconds, after one to warm up: other programs only make it longer."""
    import torch

    best, end = float("inf"), 0.0
    while True:
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if end:
            best = min(best, now - start)
        if end and now > end:
            return best
        end = end or now + seconds
