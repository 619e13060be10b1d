"""What is measured, most important first, and how a budget of seconds is shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BUDGET, REHEARSAL = 480.0, 1200.0


@dataclass(frozen=True)
class Part:
    """A part of the call: `measure` of the module of that name.

    seconds: of BUDGET; timed: whether it measures times, and so runs alone. The others run all at once, behind these.
    rehearsed: variables of the environment of its rehearsal.
    """

    name: str
    seconds: float
    what: str
    timed: bool = True
    rehearsed: Mapping[str, str] = field(default_factory=dict)


INTERPRETED = {"TRITON_INTERPRET": "1"}

PARTS = (
    Part("step", 120, "a step against its own two forwards and the textbook's; its peak of memory over inference"),
    Part("profile", 45, "the kernels of one step, what the host does meanwhile and where it waits"),
    Part("bandwidth", 25, "bytes per second of the noise kernel against a device copy", rehearsed=INTERPRETED),
    Part("offload", 90, "weights in host memory: bits, memory and seconds"),
    Part("evaluation", 70, "prompt evaluation against one row at a time, and lm_eval where it is installed"),
    Part("bits", 100, "the noise kernel: the bits of the reference", timed=False, rehearsed=INTERPRETED),
    Part("run", 130, "a run by the command line: the CPU's losses, the same log twice, kill, resume, replay, 16 bits",
         timed=False),
    Part("ranks", 110, "one rank under torchrun: FSDP2, and a restart after a kill", timed=False),
    Part("tests", 130, "pytest -m gpu", timed=False),
)  # fmt: skip


def stages(names: Sequence[str] = ()) -> list[list[Part]]:
    """The parts named, or all: in the order of PARTS those that are timed, one by one, and then the others at once."""
    chosen = [part for part in PARTS if not names or part.name in names]
    others = [part for part in chosen if not part.timed]
    return [[part] for part in chosen if part.timed] + ([others] if others else [])


def limits(names: Sequence[str] = (), budget: float = BUDGET) -> Mapping[str, float]:
    """Seconds for each part of the stages; together, where of parts at once only the longest counts, the budget."""
    chosen = stages(names)
    whole = sum(max(part.seconds for part in stage) for stage in chosen)
    return {part.name: budget * part.seconds / whole for stage in chosen for part in stage}
