"""Measures what the rules need: losses on both sides of the weights, along directions of their own.

The number of forward passes is fixed: 2 x DIRECTIONS for each size of the ladder, and BATCHES x (2 x DIRECTIONS + 1)
for the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from justforward.auto.rules import LADDER, EpsProposal, RateProposal, propose_eps, propose_rate
from justforward.optim import CounterNoise, NoiseSource
from justforward.optim.directions.base import Direction
from justforward.optim.probes.choose import choose_probe
from justforward.optim.probes.closures import Closure
from justforward.scoring import ScoringEngine
from justforward.training.objectives import Example, Objective

DIRECTIONS = 8
BATCHES = 4
FIRST_STEP = 2**40
"""Directions are those of steps that no training reaches."""


@dataclass(frozen=True)
class Proposal:
    """What was measured, of what was asked for."""

    eps: EpsProposal | None
    rate: RateProposal | None

    @property
    def values(self) -> dict[str, float]:
        """By argument."""
        found = {} if self.eps is None else {"zo_eps": self.eps.eps}
        return found if self.rate is None else {**found, "learning_rate": self.rate.learning_rate}

    def reasons(self) -> list[str]:
        """A line per argument."""
        eps = [] if self.eps is None else [f"--zo_eps auto: {self.eps.eps:g}, {self.eps.reason}"]
        rate = [] if self.rate is None else [f"--learning_rate auto: {self.rate.learning_rate:g} = {self.rate.reason}"]
        return eps + rate

    def to_json(self) -> dict[str, Any]:
        """Values, reasons and measurements."""
        measured = {name: asdict(part) for name, part in (("eps", self.eps), ("rate", self.rate)) if part is not None}
        return {"values": self.values, "reasons": self.reasons(), "measured": measured}


class LossProbe:
    """Losses at theta + eps z and theta - eps z; theta stays as it is, to the bit.

    Args:
        model: what is probed, in evaluation mode.
        probe: the name of MeZO's probe; "in_place", which rounds the weights, is replaced.
        noise: where z comes from.
        seed: of the directions.
    """

    def __init__(self, model: nn.Module, *, probe: str = "auto", noise: NoiseSource | None = None, seed: int = 0):
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.noise, self.seed = noise or CounterNoise(), seed
        self.probe = choose_probe("auto" if probe == "in_place" else probe, model, self.parameters, self.noise)

    def losses(self, closure: Closure, eps: float, number: int) -> tuple[float, float]:
        """Along direction `number`."""
        every = [eps] * len(self.parameters)
        where = {"seed": self.seed, "step": FIRST_STEP + number, "sample": 0}
        plus, minus = self.probe.losses(Direction(self.parameters, every, self.noise, **where), closure)
        return float(plus), float(minus)


def batch_closures(
    objective: Objective, engine: ScoringEngine, examples: Sequence[Example], *, size: int, seed: int
) -> list[Closure]:
    """The objective on up to BATCHES batches that share no example; one of all examples where two do not fit."""
    order = np.random.default_rng(seed).permutation(len(examples))
    count = max(1, min(BATCHES, len(examples) // size))
    drawn = [[examples[i] for i in order[b * size : (b + 1) * size]] for b in range(count)]
    batches = [objective.batch(engine, some) for some in drawn]
    return [lambda batch=batch: objective.measure(engine, batch).loss for batch in batches]


@torch.no_grad()
def propose(
    probe: LossProbe,
    closures: Sequence[Closure],
    *,
    names: Sequence[str],
    batches_per_step: int = 1,
    samples: int = 1,
) -> Proposal:
    """Measure and propose.

    Args:
        probe: what moves the weights.
        closures: the losses of several batches.
        names: what is wanted: "zo_eps", "learning_rate" or both. Curvature is measured where the probe is best,
            whatever the size that training will use.
        batches_per_step: how many such batches one step averages.
        samples: directions per step.

    Raises ValueError, in one line, where nothing sensible can be measured.
    """
    found = propose_eps({size: _differences(probe, closures[0], size) for size in LADDER})
    wanted = found if "zo_eps" in names else None
    if "learning_rate" not in names:
        return Proposal(wanted, None)
    eps = found.eps
    here = [float(closure()) for closure in closures]
    gradients, curvatures = [], []
    for number in range(DIRECTIONS):
        sides = [probe.losses(closure, eps, number) for closure in closures]
        gradients.append([(plus - minus) / (2 * eps) for plus, minus in sides])
        curvatures.append([(p + m - 2 * middle) / eps**2 for (p, m), middle in zip(sides, here, strict=True)])
    proposed = propose_rate(
        gradients,
        curvatures,
        batches_per_step=batches_per_step,
        samples=samples,
        # Three losses with weights 1, 1, -2, where a difference has two with 1, -1.
        curvature_rounding=math.sqrt(3) * found.rounding / eps**2,
    )
    return Proposal(wanted, proposed)


def _differences(probe: LossProbe, closure: Closure, eps: float) -> list[float]:
    sides = [probe.losses(closure, eps, number) for number in range(DIRECTIONS)]
    return [plus - minus for plus, minus in sides]
