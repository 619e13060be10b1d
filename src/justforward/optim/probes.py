"""How the loss at theta + eps z is evaluated, and theta is left as it was.

- `paired`: as `just_in_time`, and both signs at once, in one forward of a doubled batch, where the caller can double it
  and the model takes it; else `just_in_time`.
- `just_in_time`: a module's perturbed weights are made right before it multiplies by them, in one scratch buffer that
  is used again and again; theta is only read. Exact in every dtype, and no second copy of the weights.
- `copy`: theta is copied, perturbed in place and copied back. Exact; for small trainable sets (adapters).
- `in_place`: +eps, -2 eps, +eps, as Algorithm 1 of the paper writes it. Rounds at every pass: in 16 bits the weights
  drift (docs/precision.md). For weights that nothing else reaches.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from justforward.noise import noise_key
from justforward.optim.just_in_time import JustInTime, NotPaired, Perturbation, Reads
from justforward.optim.perturbation import CounterNoise, NoiseSource
from justforward.optim.shards import ShardedProbe

logger = logging.getLogger(__name__)

Loss = Tensor | float
Closure = Callable[[], Loss]
PairedClosure = Callable[[], Tensor]
"""Evaluates a doubled batch: [2], the loss of its first and that of its second half."""

SMALL = 64 << 20
"""Trainable sets of at most this many bytes are copied."""

VERIFIED = 8 << 20
"""So many bytes of weights are copied once, to hold a just-in-time probe to one in place."""

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference of two probes' losses that rounding explains, relative to the loss where that is above 1."""


@dataclass(frozen=True)
class Direction:
    """One z, scaled: theta + sign * eps * z for the named parameters; eps holds one number per parameter."""

    parameters: Sequence[tuple[str, Tensor]]
    eps: Sequence[float]
    noise: NoiseSource
    seed: int
    step: int
    sample: int

    def add_(self, sign: float) -> None:
        """Move all parameters, in place."""
        scales = [sign * eps for eps in self.eps]
        decays = [0.0] * len(scales)
        where = {"seed": self.seed, "step": self.step, "sample": self.sample}
        self.noise.add_(self.parameters, **where, scales=scales, decays=decays)

    def only(self, names: set[str]) -> Direction:
        """The same direction in the parameters of these names, and none in the others."""
        kept = [i for i, (name, _) in enumerate(self.parameters) if name in names]
        return dataclasses.replace(self, parameters=[self.parameters[i] for i in kept], eps=[self.eps[i] for i in kept])

    def perturbation(self, sign: float, *, paired: bool = False) -> Perturbation:
        """What modules compute with at theta + sign * eps * z."""
        assert isinstance(self.noise, CounterNoise)
        keys = {name: noise_key(self.seed, self.step, self.sample, name) for name, _ in self.parameters}
        scales = {name: sign * eps for (name, _), eps in zip(self.parameters, self.eps, strict=True)}
        return Perturbation(keys, scales, self.noise.distribution, paired)


class InPlaceProbe:
    """See the module."""

    name = "in_place"

    def losses(self, direction: Direction, closure: Closure, paired: PairedClosure | None = None) -> tuple[Loss, Loss]:
        """The losses at theta + eps z and theta - eps z."""
        offset = 0.0
        try:
            direction.add_(1.0)
            offset = 1.0
            plus = closure()
            direction.add_(-2.0)
            offset = -1.0
            minus = closure()
        finally:
            if offset:
                direction.add_(-offset)
        return plus, minus


class CopyProbe:
    """See the module."""

    name = "copy"

    def losses(self, direction: Direction, closure: Closure, paired: PairedClosure | None = None) -> tuple[Loss, Loss]:
        """The losses at theta + eps z and theta - eps z."""
        with pristine([p for _, p in direction.parameters]) as restore:
            direction.add_(1.0)
            plus = closure()
            restore()
            direction.add_(-1.0)
            minus = closure()
        return plus, minus


@contextmanager
def pristine(tensors: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Copy tensors; give back a function that restores them, which also runs at the end, come what may."""
    copies = [t.detach().clone() for t in tensors]

    def restore() -> None:
        for tensor, copied in zip(tensors, copies, strict=True):
            tensor.copy_(copied)

    try:
        yield restore
    finally:
        restore()


class JustInTimeProbe:
    """See the module. What no module call reaches, or something else reads as well, is copied and perturbed in place.

    Args:
        model: whose modules own the parameters.
        parameters: the trainable ones, by the names that seed their noise. A tied weight has one name.
        pairs: whether to probe in pairs where the caller can.
        copies: whether to copy, rather than perturb just in time, where it cannot: cheaper for small trainable sets.
    """

    name = "just_in_time"

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[tuple[str, Tensor]],
        *,
        pairs: bool = False,
        copies: bool = False,
    ):
        self.copies = copies
        self.modules = JustInTime(model, parameters)
        self.reached: set[str] | None = None
        """Parameters that are perturbed just in time; None until the first forward has been watched."""
        self.pairs: bool | None = None if pairs else False
        """Whether probing in pairs works; None until it has been tried."""

    def losses(self, direction: Direction, closure: Closure, paired: PairedClosure | None = None) -> tuple[Loss, Loss]:
        """The losses at theta + eps z and theta - eps z."""
        if self.copies and (paired is None or self.pairs is False):
            return CopyProbe().losses(direction, closure)
        if self.reached is None:
            self._watch(direction, closure)
            self._verify(direction, closure)
        assert self.reached is not None
        rest = direction.only({name for name, _ in direction.parameters} - self.reached)
        if rest.parameters:
            moved = direction.only(self.reached)
            with pristine([p for _, p in rest.parameters]) as restore:
                rest.add_(1.0)
                plus = self._at(moved, 1.0, closure)
                restore()
                rest.add_(-1.0)
                return plus, self._at(moved, -1.0, closure)
        if paired is not None and self.pairs is None:
            self.pairs = self._try_pair(direction, closure, paired)
        if paired is not None and self.pairs:
            return self._pair(direction, paired)
        return self._at(direction, 1.0, closure), self._at(direction, -1.0, closure)

    def _at(self, direction: Direction, sign: float, closure: Closure) -> Loss:
        with self.modules.perturbed(direction.perturbation(sign)):
            return closure()

    def _pair(self, direction: Direction, paired: PairedClosure) -> tuple[Loss, Loss]:
        with self.modules.perturbed(direction.perturbation(1.0, paired=True)):
            plus, minus = paired()
            return plus, minus

    def _watch(self, direction: Direction, closure: Closure) -> None:
        """Find what must not be perturbed just in time: what no call reaches, and what is read outside its module."""
        by, reads = direction.perturbation(1.0), Reads(direction.parameters)
        with self.modules.perturbed(by), reads:
            closure()
        self.reached = by.reached - reads.names
        if read := sorted(by.reached & reads.names):
            logger.info("read outside their modules, so copied for each probe: %s", ", ".join(read))

    def _verify(self, direction: Direction, closure: Closure) -> None:
        """Hold the probe to one in place, on as many weights as are quickly copied; raise nothing, copy all instead."""
        assert self.reached is not None
        some, size = set[str](), 0
        for name, p in sorted(direction.parameters, key=lambda pair: pair[1].numel()):
            size += p.numel() * p.element_size()
            if name in self.reached and size <= VERIFIED:
                some.add(name)
        part = direction.only(some)
        if not some:
            return
        with pristine([p for _, p in part.parameters]):
            part.add_(1.0)
            expected = closure()
        measured = self._at(part, 1.0, closure)
        if not close(measured, expected, [p for _, p in part.parameters]):
            logger.warning(
                "a just-in-time probe measures %g where one in place measures %g: weights are copied for each probe",
                measured, expected,
            )  # fmt: skip
            self.reached = set()

    def _try_pair(self, direction: Direction, closure: Closure, paired: PairedClosure) -> bool:
        """Whether a doubled batch measures what two forwards do."""
        alone = self._at(direction, 1.0, closure), self._at(direction, -1.0, closure)
        try:
            together = self._pair(direction, paired)
        except (NotPaired, RuntimeError, ValueError, TypeError, IndexError) as error:
            logger.info("no probes in pairs: %s", error)
            return False
        weights = [p for _, p in direction.parameters]
        if all(close(a, b, weights) for a, b in zip(together, alone, strict=True)):
            return True
        logger.info("no probes in pairs: they measure %s, and two forwards %s", together, alone)
        return False


def close(a: Loss, b: Loss, weights: Sequence[Tensor]) -> bool:
    """Whether two losses are equal up to rounding in the coarsest dtype of the weights."""
    a, b = float(a), float(b)
    tolerance = max(TOLERANCE.get(w.dtype, 1e-4) for w in weights)
    return abs(a - b) <= tolerance * max(1.0, abs(b)) or not (math.isfinite(a) and math.isfinite(b))


Probe = InPlaceProbe | CopyProbe | JustInTimeProbe | ShardedProbe

PROBES = ("auto", "paired", "just_in_time", "copy", "in_place")


def choose_probe(
    name: str, model: nn.Module | None, parameters: Sequence[tuple[str, Tensor]], noise: NoiseSource
) -> Probe:
    """The probe called `name`; "auto" takes the cheapest exact one that applies.

    Raises ValueError for an unknown name, for "paired" and "just_in_time" without the model or with other noise, and
    for weights that are not there.
    """
    if name not in PROBES:
        raise ValueError(f"unknown probe '{name}'; known: {', '.join(PROBES)}")
    if absent := [n for n, p in parameters if p.is_meta]:
        raise ValueError(f"{absent[0]} is not in memory (a device map has moved it off): use --zo_offload cpu or disk")
    if model is not None and any(isinstance(p, DTensor) for _, p in parameters):
        if name not in ("auto", "copy"):
            raise ValueError(f"the probe '{name}' takes no sharded weights: use 'auto' or 'copy'")
        return ShardedProbe(model, parameters) if name == "auto" else CopyProbe()
    possible = model is not None and isinstance(noise, CounterNoise) and all(p.is_contiguous() for _, p in parameters)
    if name == "auto":
        small = sum(p.numel() * p.element_size() for _, p in parameters) <= SMALL
        if small and possible and model is not None:
            return JustInTimeProbe(model, parameters, pairs=True, copies=True)
        name = "copy" if small else "paired" if possible else "in_place"
        if name == "in_place" and any(p.element_size() < 4 for _, p in parameters):
            logger.warning("16-bit weights are probed in place, which rounds them at every step: give MeZO the model")
    if name in ("paired", "just_in_time"):
        if not possible or model is None:
            raise ValueError(f"the probe '{name}' needs the model, counter-based noise and contiguous weights")
        return JustInTimeProbe(model, parameters, pairs=name == "paired")
    return CopyProbe() if name == "copy" else InPlaceProbe()
