"""What is asked of a device, and what a CPU answers in its place: no line of a part is for a GPU alone."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from bench.peak import MIB, allocator_peak, tensors_held
from justforward.noise import NoiseBackend, backend

T = TypeVar("T")

GIB = 2**30

OURS = ("/justforward/", "/transformers/")
"""Packages whose lines are told of."""


@dataclass(frozen=True)
class Where:
    """A GPU, "cuda", or in a rehearsal the "cpu".

    seconds: that the part has.
    """

    device: str
    seconds: float = float("inf")

    @property
    def rehearsal(self) -> bool:
        """Whether figures mean nothing."""
        return self.device == "cpu"

    def pick(self, real: T, rehearsed: T) -> T:
        """A size for the GPU, or one for the rehearsal."""
        return rehearsed if self.rehearsal else real

    def gib(self) -> float:
        """The device's memory."""
        if self.rehearsal:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
        return torch.cuda.get_device_properties(self.device).total_memory / GIB

    def peak_mib(self, run: Callable[[], object]) -> float:
        """Most memory of the device that tensors had while it ran; without gradients."""
        with torch.no_grad():
            if self.rehearsal:
                return tensors_held() + allocator_peak(run)
            torch.cuda.reset_peak_memory_stats(self.device)
            run()
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) / MIB

    def empty_cache(self) -> None:
        """Give back what the allocator keeps for later, so that the next model finds room in one piece."""
        if not self.rehearsal:
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        """Wait until the device has done all it was given."""
        if not self.rehearsal:
            torch.cuda.synchronize(self.device)

    def waits(self, run: Callable[[], object]) -> dict[str, int]:
        """How often the host waited for the device, by the line of `OURS` that made it wait."""
        places: Counter[str] = Counter()

        def note(message: Any, *_: Any) -> None:
            if "synchronizing" in str(message):
                places[place_of(traceback.extract_stack()[:-1])] += 1

        self.synchronize()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            if not self.rehearsal:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                if not self.rehearsal:
                    torch.cuda.set_sync_debug_mode("default")
        return dict(places.most_common())

    def kernel(self) -> NoiseBackend:
        """The noise of the device; in a rehearsal Triton's, which TRITON_INTERPRET runs, where it is installed."""
        return _interpreted() if self.rehearsal else backend(self.device)

    def activities(self) -> list[ProfilerActivity]:
        """What a profile records."""
        return [ProfilerActivity.CPU, *([] if self.rehearsal else [ProfilerActivity.CUDA])]

    def is_kernel(self, event: Any) -> bool:
        """Whether a profiled event is one of the device, not the call that led to it."""
        if "#" in (event.key or ""):  # an optimiser's step, which the profiler notes as well
            return False
        return event.device_type == (DeviceType.CPU if self.rehearsal else DeviceType.CUDA)

    def own_time(self, event: Any) -> float:
        """Microseconds of a profiled kernel, without those that it calls."""
        return event.self_cpu_time_total if self.rehearsal else event.self_device_time_total


def place_of(stack: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of `OURS` in a stack, from its package's name on; or the innermost of all."""
    for frame in reversed(stack):
        for package in OURS:
            if package in frame.filename:
                return f"{package[1:]}{frame.filename.rpartition(package)[2]}:{frame.lineno}"
    others = [frame for frame in stack if not frame.filename.endswith("warnings.py")]
    return f"{others[-1].filename.rpartition('site-packages/')[2]}:{others[-1].lineno}" if others else "?"


@functools.cache
def _interpreted() -> NoiseBackend:
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: the CPU's noise stands in for its kernel", flush=True)
        return backend("cpu")
    return importlib.import_module("justforward.noise.triton").TritonNoise("cpu")
