"""What is measured, most important first, and how a budget of seconds is shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BUDGET, REHEARSAL = 480.0, 1200.0


@dataclass(frozen=True)
class Part:
    """A part of the call: `measure` of the module of that name.

    seconds: of BUDGET; rehearsed: variables of the environment of its rehearsal.
    """

    name: str
    seconds: float
    what: str
    rehearsed: Mapping[str, str] = field(default_factory=dict)


PARTS = (
    Part("noise", 75, "the noise kernel: bits of the reference, and bytes per second against a device copy",
         rehearsed={"TRITON_INTERPRET": "1"}),
    Part("run", 85, "a run by the command line: the CPU's losses, the same log twice, kill, resume, replay, 16 bits"),
    Part("step", 125, "a step against the textbook's and its own two forwards; its peak of memory over inference"),
    Part("evaluation", 50, "prompt evaluation against one row at a time, and lm_eval where it is installed"),
    Part("offload", 60, "weights in host memory: bits, memory and seconds"),
    Part("ranks", 35, "one rank under torchrun: FSDP2, and a restart after a kill"),
    Part("tests", 35, "pytest -m gpu"),
    Part("profile", 15, "the kernels of one step"),
)  # fmt: skip


def limits(names: Sequence[str] = (), budget: float = BUDGET) -> Mapping[str, float]:
    """Seconds for each of the parts named, or of all, in the order of PARTS; together the budget."""
    chosen = [part for part in PARTS if not names or part.name in names]
    whole = sum(part.seconds for part in chosen)
    return {part.name: budget * part.seconds / whole for part in chosen}
