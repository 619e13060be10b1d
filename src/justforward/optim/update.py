"""A step of the weights. Plain MeZO's is one fused pass of noise for each direction (`moves`).

Other directions and rules (`Update`): the estimate in the coordinates of its direction, the rule, one rounding. The
estimate of a parameter is made in pieces, so that no tensor of its size is needed but what the rule keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from justforward.noise import noise_key
from justforward.optim.directions.base import Directions, NoiseSource, Place, as_matrix, move_rows, row_slices
from justforward.optim.directions.coordinates import Coordinates
from justforward.optim.directions.dense import CounterNoise
from justforward.optim.rules.base import Rule
from justforward.optim.rules.rebuilt import Rebuilt
from justforward.optim.rules.stateless import SGD

Measured = tuple[int, Sequence[float]]
"""A step's number and its projected gradients."""


@dataclass(frozen=True)
class Moved:
    """A parameter and what its group says: projected gradients are multiplied by `ratio`; decay is lr weight_decay."""

    name: str
    p: Tensor
    lr: float
    decay: float
    ratio: float


@dataclass
class Update:
    """Applies steps. `kept`: the rule's slots by parameter; they are made when they are first needed."""

    directions: Directions
    rule: Rule
    rounding: str
    kept: dict[str, dict[str, Tensor]]

    def apply(
        self, moved: Sequence[Moved], seed: int, history: Sequence[Measured], residuals: Mapping[str, Any]
    ) -> None:
        """Make the step whose measurements are the last of `history`; those before are for rules that rebuild."""
        step = history[-1][0]
        for one in moved:
            place = Place(seed, step, 0)
            if isinstance(self.directions, Coordinates):
                drawn = self.directions.coordinates(one.name, one.p, place)
                if drawn is not None:
                    self._in_coordinates(self.directions, one, place, history, drawn, residuals.get(one.name))
                    continue
            kept = self._slots(one.name, one.p.shape, one.p.device)
            for rows in row_slices(one.p):
                part = {slot: as_matrix(value)[rows] for slot, value in kept.items()}
                estimates = self._estimates(one, rows, seed, history)
                self._move(one, rows, self._ruled(estimates, part, step), place, residuals.get(one.name))

    def _in_coordinates(
        self,
        directions: Coordinates,
        one: Moved,
        place: Place,
        history: Sequence[Measured],
        drawn: Tensor,
        residual: Tensor | None,
    ) -> None:
        step, grads = history[-1]
        total = drawn.mul_(grads[0] * one.ratio / len(grads))
        for sample in range(1, len(grads)):
            other = directions.coordinates(one.name, one.p, place._replace(sample=sample))
            assert other is not None
            total.add_(other, alpha=grads[sample] * one.ratio / len(grads))
        kept = self._slots(one.name, total.shape, one.p.device)
        directions.carry(one.name, one.p, place, kept)
        update = self._ruled(iter([total]), kept, directions.age(step))
        for rows in row_slices(one.p):
            self._move(one, rows, directions.lift(one.name, one.p, place, update, rows), place, residual)

    def _ruled(self, estimates: Iterator[Tensor], kept: Mapping[str, Tensor], step: int) -> Tensor:
        if isinstance(self.rule, Rebuilt):
            return self.rule.combine(estimates)
        return self.rule.update(next(estimates), kept, step)

    def _estimates(self, one: Moved, rows: slice, seed: int, history: Sequence[Measured]) -> Iterator[Tensor]:
        """The estimates of some rows, the newest first: the mean of g z over a step's directions."""
        for step, grads in reversed(history):
            coefficients = [g * one.ratio / len(grads) for g in grads]
            yield self.directions.combined(one.name, one.p, Place(seed, step, 0), coefficients, rows)

    def _move(self, one: Moved, rows: slice, update: Tensor, place: Place, residual: Tensor | None) -> None:
        key = noise_key(*place, one.name)
        move_rows(one.p, rows, update.mul_(-one.lr), key, one.decay, self.rounding, residual)

    def _slots(self, name: str, shape: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        if name not in self.kept and self.rule.slots:
            self.kept[name] = {slot: torch.zeros(tuple(shape), device=device) for slot in self.rule.slots}
        return self.kept.get(name, {})


@dataclass(frozen=True)
class Move:
    """p <- p (1 - decay) + scale z, for z of direction number `sample`; scales and decays: one per parameter group."""

    sample: int
    scales: list[float]
    decays: list[float]


def moves(groups: Sequence[Mapping[str, Any]], projected_grads: Sequence[float]) -> Iterator[Move]:
    """The moves of one step: the mean over its directions, and the weight decay with the first of them.

    groups: the optimiser's, each with "lr", "eps" and "weight_decay". Projected gradients are in units of the first
    group's eps; the others are rescaled to their own.
    """
    samples = len(projected_grads)
    for sample, projected_grad in enumerate(projected_grads):
        scales, decays = [], []
        for group in groups:
            rescaled = projected_grad * groups[0]["eps"] / group["eps"]
            scales.append(-float(group["lr"]) * rescaled / samples)
            decays.append(float(group["lr"]) * group["weight_decay"] if sample == 0 else 0.0)
        yield Move(sample, scales, decays)


def state_bytes(pairs: Sequence[tuple[str, Tensor]], directions: Directions, rule: Rule) -> int:
    """Bytes that directions and rule keep from step to step, beside the weights."""
    numbers = 0
    for _, p in pairs:
        shape = directions.coordinate_shape(p) if isinstance(directions, Coordinates) else None
        numbers += p.numel() if shape is None else math.prod(shape)
    return directions.state_bytes(pairs) + 4 * len(rule.slots) * numbers


def check_update(pairs: Sequence[tuple[str, Tensor]], noise: NoiseSource, rule: Rule, probe: str) -> None:
    """Raise ValueError for directions, a rule, a probe or weights that do not go together."""
    plain = isinstance(noise, CounterNoise)
    if not isinstance(noise, Directions) and not isinstance(rule, SGD):
        raise ValueError(f"the rule '{rule.name}' needs directions of justforward's: noise of your own takes SGD only")
    if isinstance(rule, Rebuilt) and isinstance(noise, Coordinates):
        raise ValueError(
            f"the rule '{rule.name}' rebuilds dense directions: take 'momentum' or 'adam' for '{noise.name}'"
        )
    if (plain and isinstance(rule, SGD)) or not isinstance(noise, Directions):
        return
    if any(isinstance(p, DTensor) for _, p in pairs):
        raise ValueError(
            "weights that ranks share (FSDP, tensor parallelism) take dense noise and SGD: --zo_method mezo"
        )
    if not plain and probe == "in_place":
        raise ValueError("the probe 'in_place' takes dense noise only: use 'auto' or 'copy'")
    if odd := [name for name, p in pairs if not p.is_contiguous()]:
        raise ValueError(f"{odd[0]} is not contiguous in memory: such weights take dense noise and SGD only")
