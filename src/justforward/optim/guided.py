"""Steps along directions that are known, with a length that is measured.

    g = Guided(named_parameters)
    g.estimate(loss, factors, shifted)     now and then some forward passes more
    g.step()                               theta <- theta - lr scale D

A direction D comes as two factors for each weight; where it comes from is the caller's (justforward.scoring.guide). Its
length is slope over curvature of the loss along D, from two probes: the means of both over all probes so far, for one
batch's curvature is mostly noise. The learning rate is a factor of it that a schedule lowers.

What may be made of D first: parts of it weighted by what probes with random signs tell of each (`parts`), and a random
share in it (`noise`; guided evolution strategies: Maheswaranathan et al., ICML 2019). Where what counts is a metric,
the probes of the loss tell how far, and probes of the metric whether, and which way.
"""

from __future__ import annotations

import logging
import math
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch

from justforward.noise import noise_key
from justforward.optim.coefficients import Coefficients
from justforward.optim.directions.base import move_rows, row_slices
from justforward.optim.factors import Factors
from justforward.optim.given import named, trainable
from justforward.optim.log import TrajectoryWriter, quantize
from justforward.optim.mezo import DivergenceError

logger = logging.getLogger(__name__)

FIRST_PROBES, PROBE_EVERY = 5, 10
"""Every one of the first steps is probed, and then one in so many."""

BOLDNESS = 2.0
"""Lengths are so many times slope over curvature: a schedule takes them down to nothing, and half of it is the mean."""

FIRST_SHIFT = 0.5
"""The first probe goes as far as would halve the loss if it fell as steeply all the way."""

REMEMBERED = 51
"""Norms of so many steps tell which step's direction is too large."""

Direction = Mapping[str, Factors]
"""D, by the names of weights."""

Shifted = Callable[[Direction, float], float]
"""The loss of the batch at theta + h D, by D and h."""


class Guided(torch.optim.Optimizer):
    """See the module.

    Args:
        params: named parameters, or groups of them; those that no direction is given for stay as they are.
        lr: factor of the measured length; 1 is right, and a schedule may lower it.
        weight_decay: decoupled: theta <- theta (1 - lr scale weight_decay).
        seed: of stochastic rounding, of the probes' signs and of the random share.
        rounding: of 16-bit weights: "stochastic" or "nearest".
        max_skipped: a step whose loss is not finite is skipped; so many in a row raise DivergenceError.
        parts: the number of the part of D that a weight belongs to, by name; None: D is taken as it is. Two more
            forward passes where a step is probed.
        noise: norm of a random direction that is added to D, over the norm of D. Every step is probed then, for the
            slope along a direction is known for no other.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
        rounding: str = "stochastic",
        max_skipped: int = 20,
        parts: Mapping[str, int] | None = None,
        noise: float = 0.0,
    ):
        super().__init__(trainable(params), {"lr": lr, "weight_decay": weight_decay})
        self.seed, self.rounding, self.max_skipped = seed, rounding, max_skipped
        self.coefficients = None if parts is None else Coefficients(parts)
        self.noise = noise
        # Under one string key of `state`: it is saved and restored with any optimiser's state.
        cast(Any, self.state)["guided"] = {
            **{"step": 0, "forwards": 0, "probes": 0, "slope": 0.0, "curvature": 0.0, "length": 0.0},
            **{"skipped": 0, "skipped_in_a_row": 0, "norms": [], "better": 0, "worse": 0, "told": []},
        }
        self.trajectory: TrajectoryWriter | None = None
        self.logged: Sequence[Sequence[float]] | None = None
        """A log's records, by step: they are applied, and nothing is measured."""
        self._worth: dict[int, float] = {}
        self._clear()

    @property
    def record_size(self) -> int:
        """Numbers that a step leaves in a log: the scale of D, and the coefficients of its parts."""
        return 1 + (0 if self.coefficients is None else len(self.coefficients.numbers))

    @property
    def progress(self) -> dict[str, Any]:
        """What the steps so far have found. slope, curvature: summed over probes, in units of the squared norm."""
        return cast(Any, self.state)["guided"]

    @property
    def slope_share(self) -> float:
        """The slope along D over the squared norm of D, the mean over probes: 1 where D is the gradient."""
        found = self.progress
        return found["slope"] / found["probes"] if found["probes"] else math.nan

    @property
    def agreement(self) -> float:
        """How far the metric falls along D as the loss does: 1 before it was probed, -1 where it always rises."""
        better, worse = self.progress["better"], self.progress["worse"]
        return (1 + better - worse) / (1 + better + worse)

    @torch.no_grad()
    def estimate(
        self,
        loss: float,
        factors: Direction,
        shifted: Shifted,
        weight: float = 1.0,
        metric: Shifted | None = None,
    ) -> None:
        """Add a micro-batch to the step: its loss, the direction, and how to probe along one.

        Probes are made on the first micro-batch of a step. weight: of this loss among those of the step; metric: what
        is to be lowered in place of the loss, which need not have a gradient.
        """
        found = self.progress
        found["forwards"] += 1
        first = self._weight == 0
        if first:
            self._worth = self._coefficients()
        direction = factors
        if self.coefficients is not None:
            direction = {n: one.times(self._worth[self.coefficients.parts[n]]) for n, one in factors.items()}
        if self.noise:
            direction = {name: self._with_noise(name, one) for name, one in direction.items()}
        due = self.noise or found["step"] < FIRST_PROBES or found["step"] % PROBE_EVERY == 0
        if self.logged is None and first and due and math.isfinite(loss):
            self._probe(loss, direction, shifted)
            if self.coefficients is not None:
                self._tell(factors, shifted)
            if metric is not None:
                self._compare(metric, direction)
        for name, one in direction.items():
            scaled = one.times(weight)
            self._factors[name] = self._factors[name].joined(scaled) if name in self._factors else scaled
        self._loss += weight * loss
        self._weight += weight

    def _probe(self, loss: float, direction: Direction, shifted: Shifted) -> None:
        found = self.progress
        squared = sum(one.squared() for one in direction.values())
        if squared == 0:
            return
        shift = abs(found["length"]) or FIRST_SHIFT * abs(loss) / squared
        plus, minus = shifted(direction, shift), shifted(direction, -shift)
        found["forwards"] += 2
        if not (math.isfinite(plus) and math.isfinite(minus)):
            found["length"] = shift / 4
            return
        slope = (plus - minus) / (2 * shift) / squared
        found["probes"] += 1
        found["slope"] += slope
        found["curvature"] += (plus - 2 * loss + minus) / shift**2 / squared
        own = slope * found["probes"] if self.noise else found["slope"]
        newton = BOLDNESS * own / found["curvature"] if found["curvature"] > 0 else math.copysign(math.inf, own)
        # Where the loss bends down, or hardly bends, the length may double, and a new probe goes so far.
        found["length"] = max(-2 * shift, min(newton, 2 * shift))
        if own <= 0 and not self.noise:
            found["length"] = 0.0
            logger.warning(
                "the loss does not fall along the guide (%.3g of its slope): no step is made", self.slope_share
            )

    def _coefficients(self) -> dict[int, float]:
        """What each part of this step's direction is multiplied with."""
        if self.coefficients is None:
            return {}
        if self.logged is not None:
            return dict(zip(self.coefficients.numbers, self.logged[self.progress["step"]][1:], strict=True))
        fitted = self.coefficients.fitted(self.progress["told"])
        return {part: quantize(value) for part, value in fitted.items()}

    def _tell(self, factors: Direction, shifted: Shifted) -> None:
        """Probe along D with a random sign for each part."""
        assert self.coefficients is not None
        found = self.progress
        chance = random.Random(f"{self.seed} {found['step']}")
        signs = {part: chance.choice((-1.0, 1.0)) for part in self.coefficients.numbers}
        signed = {name: one.times(signs[self.coefficients.parts[name]]) for name, one in factors.items()}
        shift = abs(found["length"]) / 2 or FIRST_SHIFT
        plus, minus = shifted(signed, shift), shifted(signed, -shift)
        found["forwards"] += 2
        if math.isfinite(plus) and math.isfinite(minus):
            observed = self.coefficients.observed(factors, signs, (plus - minus) / (2 * shift))
            found["told"] = [*found["told"], observed]

    def _compare(self, metric: Shifted, direction: Direction) -> None:
        """Count whether the metric falls where the step would go."""
        found = self.progress
        ahead, behind = metric(direction, -found["length"]), metric(direction, found["length"])
        found["forwards"] += 2
        found["better"] += ahead < behind
        found["worse"] += ahead > behind

    def _with_noise(self, name: str, one: Factors) -> Factors:
        """A random matrix of rank 1, drawn for this step, beside a part of D."""
        key = noise_key(self.seed, self.progress["step"], 0, f"{name} share")
        return one.joined(one.random(key, self.noise * math.sqrt(one.squared())))

    @torch.no_grad()
    def step(self, closure: Any = None) -> float:  # type: ignore[override]
        """Apply the estimates made since the last step; returns the mean loss.

        Raises DivergenceError where `max_skipped` steps in a row had a loss that is not finite, and RuntimeError where
        there is nothing to apply.
        """
        if self._weight == 0:
            raise RuntimeError("Guided.step() has no estimate to apply: call estimate() first")
        loss, weight, direction, found = self._loss / self._weight, self._weight, self._factors, self.progress
        self._clear()
        scale = self._scale(loss, direction, weight)
        if self.trajectory is not None:  # before the update, as MeZO's
            self.trajectory.append((scale, *self._worth.values()))
        if math.isfinite(scale):
            found["skipped_in_a_row"] = 0
            self._move(direction, scale, weight)
        else:
            found["skipped"] += 1
            found["skipped_in_a_row"] += 1
        found["step"] += 1
        if found["skipped_in_a_row"] >= self.max_skipped:
            raise DivergenceError(f"{self.max_skipped} steps in a row had a loss that is not finite")
        return loss

    def _scale(self, loss: float, direction: Direction, weight: float) -> float:
        """What D is multiplied with in this step, but for the learning rate; NaN: the step is skipped."""
        found = self.progress
        if self.logged is not None:
            return self.logged[found["step"]][0]
        norm = math.sqrt(sum(one.squared() for one in direction.values())) / weight
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return math.nan
        norms = deque(found["norms"], REMEMBERED)
        norms.append(norm)
        found["norms"] = list(norms)
        clipped = min(1.0, statistics.median(norms) / norm) if norm else 0.0
        return quantize(found["length"] * self.agreement * clipped)

    def _move(self, direction: Direction, scale: float, weight: float) -> None:
        for group in self.param_groups:
            by = float(group["lr"]) * scale
            for name, p in named(group):
                if name in direction:
                    key = noise_key(self.seed, self.progress["step"], 0, name)
                    for rows in row_slices(p):
                        update = direction[name].rows(rows).mul_(-by / weight)
                        move_rows(p, rows, update, key, abs(by) * group["weight_decay"], self.rounding, None)

    def _clear(self) -> None:
        self._factors: dict[str, Factors] = {}
        self._loss = self._weight = 0.0
