"""What jobs are to fit, and how a job is laid out over several GPUs: a copy of the model on each, or one over all."""

from __future__ import annotations

from dataclasses import dataclass, replace

from justforward.machine import GIB
from justforward.planning.memory import GPU_OVERHEAD, Load, Memory, mezo, zero_shot
from justforward.planning.shape import ModelShape

TIGHT = 0.9
"""A memory that is filled more than this leaves little for what the formulas do not know."""


@dataclass(frozen=True)
class Target:
    """What jobs are to fit: `count` devices ("cuda" or "cpu") of `memory` bytes each."""

    device: str
    count: int
    memory: int

    def fit(self, memory: Memory) -> str:
        """Whether it fits: "yes", "tight", "on 2" (spread over so many GPUs), or "no"."""
        for count in range(1, self.count + 1):
            needed = memory.spread(count).total
            if needed <= self.memory:
                return f"on {count}" if count > 1 else "tight" if needed > TIGHT * self.memory else "yes"
        return "no"


@dataclass(frozen=True)
class Layout:
    """`processes` copies, each on a GPU of its own; 1 spreads one copy over all of them."""

    processes: int
    reason: str

    def __str__(self) -> str:
        return f"data{self.processes}" if self.processes > 1 else "spread"


def copy_bytes(shape: ModelShape, width: int) -> int:
    """Bytes that a copy of the model, with weights of `width` bytes, needs on a GPU.

    The larger of an evaluation and a MeZO step, in full passes of the longest rows.
    """
    longest = min(2048, shape.positions or 2048)
    load = Load(tokens=longest, longest=longest, width=width, device="cuda")
    load = replace(load, rows=load.budget // longest)
    return max(zero_shot(shape, load).total, mezo(shape, load).total) + GPU_OVERHEAD


def choose_layout(need: int, gpus: list[int], batch: int | None = None) -> Layout:
    """The layout for a copy that needs so many bytes, on GPUs of so many bytes each.

    batch: examples per step, which processes must be able to share evenly; None: any number of them can work.
    """
    if len(gpus) < 2:
        return Layout(1, f"{len(gpus)} GPU")
    if Target("cuda", 1, min(gpus)).fit(Memory(weights=need)) == "no":
        return Layout(1, f"a copy needs about {need / GIB:.0f} GiB, the smallest GPU has {min(gpus) / GIB:.0f}")
    processes = max(n for n in range(1, len(gpus) + 1) if batch is None or batch % n == 0)
    return Layout(processes, f"a copy of about {need / GIB:.0f} GiB fits each of {len(gpus)} GPUs")
