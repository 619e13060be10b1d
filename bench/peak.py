"""Memory of this process, of its tensors and of what torch's allocator holds; nothing but torch is imported."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

MIB = 2**20


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def allocator_peak(run: Callable[[], object]) -> float:
    """Most that torch's allocator held at once beyond what it holds before, MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None
    assert profiled.profiler.kineto_results is not None
    events: list[Any] = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / MIB


def tensors_held() -> float:
    """What all tensors of this process take, MiB."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in (one.untyped_storage() for one in tensors)}.values()) / MIB
