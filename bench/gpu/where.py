"""What is asked of a device, and what a CPU answers in its place: no line of a part is for a GPU alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity

from bench.memory import MIB, allocator_peak, tensors_held

T = TypeVar("T")

GIB = 2**30


@dataclass(frozen=True)
class Where:
    """A GPU, "cuda", or in a rehearsal the "cpu"."""

    device: str

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

    def activities(self) -> list[ProfilerActivity]:
        """What a profile records."""
        return [ProfilerActivity.CPU, *([] if self.rehearsal else [ProfilerActivity.CUDA])]

    def is_kernel(self, event: Any) -> bool:
        """Whether a profiled event is one of the device, not the call that led to it."""
        return event.device_type == (DeviceType.CPU if self.rehearsal else DeviceType.CUDA)

    def own_time(self, event: Any) -> float:
        """Microseconds of a profiled kernel, without those that it calls."""
        return event.self_cpu_time_total if self.rehearsal else event.self_device_time_total
