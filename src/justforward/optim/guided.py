"""Steps along directions that are known, with a length that is measured.

    g = Guided(named_parameters)
    g.estimate(loss, factors, shifted)     now and then two forward passes more
    g.step()                               theta <- theta - lr length D

A direction D comes as two factors for each weight; where it comes from is the caller's (justforward.scoring.guide). The
length is slope over curvature of the loss along D, from two probes: the means of both over all probes so far, for one
batch's curvature is mostly noise. The learning rate is a factor of it that a schedule lowers.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from justforward.noise import noise_key
from justforward.optim.directions.base import move_rows, row_slices
from justforward.optim.given import named, trainable
from justforward.optim.mezo import DivergenceError

logger = logging.getLogger(__name__)

FIRST_PROBES, PROBE_EVERY = 5, 10
"""Every one of the first steps is probed, and then one in so many."""

BOLDNESS = 2.0
"""Lengths are so many times slope over curvature: a schedule takes them down to nothing, and half of it is the mean."""

FIRST_SHIFT = 0.5
"""The first probe goes as far as would halve the loss if it fell as steeply all the way."""

GRAM = 1 << 22
"""Products of positions that are made at a time."""

REMEMBERED = 51
"""Norms of so many steps tell which step's direction is too large."""


@dataclass(frozen=True)
class Factors:
    """A direction D = error^T inputs of a weight, [outputs, inputs]; or D^T where the weight is kept the other way.

    error: [P, outputs]; inputs: [P, inputs]; both float32. P is the number of scored positions.
    """

    error: Tensor
    inputs: Tensor
    turned: bool = False

    def squared(self) -> float:
        """The squared norm of D, without making it."""
        total, step = 0.0, max(1, GRAM // max(1, len(self.error)))
        for error, inputs in zip(self.error.split(step), self.inputs.split(step), strict=True):
            total += float(((error @ self.error.T).double() * (inputs @ self.inputs.T).double()).sum())
        return total

    def added(self, x: Tensor) -> Tensor:
        """What D adds to a layer's output for inputs x, [..., inputs] -> [..., outputs], float32."""
        return (x.float() @ self.inputs.T) @ self.error

    def rows(self, rows: slice) -> Tensor:
        """Some rows of D as the weight is kept, float32."""
        a, b = (self.inputs, self.error) if self.turned else (self.error, self.inputs)
        return a[:, rows].T @ b

    def joined(self, other: Factors) -> Factors:
        """The sum of two directions of one weight."""
        return Factors(torch.cat([self.error, other.error]), torch.cat([self.inputs, other.inputs]), self.turned)

    def times(self, factor: float) -> Factors:
        """The direction, so many times as long."""
        return Factors(self.error * factor, self.inputs, self.turned)


Shifted = Callable[[float], float]
"""The loss of the batch at theta + h D, by h."""


class Guided(torch.optim.Optimizer):
    """See the module.

    Args:
        params: named parameters, or groups of them; those that no direction is given for stay as they are.
        lr: factor of the measured length; 1 is right, and a schedule may lower it.
        weight_decay: decoupled: theta <- theta (1 - lr length weight_decay).
        seed: of stochastic rounding.
        rounding: of 16-bit weights: "stochastic" or "nearest".
        max_skipped: a step whose loss is not finite is skipped; so many in a row raise DivergenceError.
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
    ):
        super().__init__(trainable(params), {"lr": lr, "weight_decay": weight_decay})
        self.seed, self.rounding, self.max_skipped = seed, rounding, max_skipped
        # Under one string key of `state`: it is saved and restored with any optimiser's state.
        cast(Any, self.state)["guided"] = {
            **{"step": 0, "forwards": 0, "probes": 0, "slope": 0.0, "curvature": 0.0, "length": 0.0},
            **{"skipped": 0, "skipped_in_a_row": 0, "norms": []},
        }
        self._clear()

    @property
    def progress(self) -> dict[str, Any]:
        """What the steps so far have found. slope, curvature: summed over probes, in units of the squared norm."""
        return cast(Any, self.state)["guided"]

    @property
    def slope_share(self) -> float:
        """The slope along D over the squared norm of D, the mean over probes: 1 where D is the gradient."""
        found = self.progress
        return found["slope"] / found["probes"] if found["probes"] else math.nan

    @torch.no_grad()
    def estimate(self, loss: float, factors: Mapping[str, Factors], shifted: Shifted, weight: float = 1.0) -> None:
        """Add a micro-batch to the step: its loss, the directions by parameter name, and how to probe along them.

        Probes are made on the first micro-batch of a step. weight: of this loss among those of the step.
        """
        found = self.progress
        found["forwards"] += 1
        if (
            math.isfinite(loss)
            and self._weight == 0
            and (found["step"] < FIRST_PROBES or found["step"] % PROBE_EVERY == 0)
        ):
            self._probe(loss, factors, shifted)
        for name, one in factors.items():
            scaled = one.times(weight)
            self._factors[name] = self._factors[name].joined(scaled) if name in self._factors else scaled
        self._loss += weight * loss
        self._weight += weight

    def _probe(self, loss: float, factors: Mapping[str, Factors], shifted: Shifted) -> None:
        found = self.progress
        squared = sum(one.squared() for one in factors.values())
        if squared == 0:
            return
        shift = found["length"] or FIRST_SHIFT * abs(loss) / squared
        plus, minus = shifted(shift), shifted(-shift)
        found["forwards"] += 2
        if not (math.isfinite(plus) and math.isfinite(minus)):
            found["length"] = shift / 4
            return
        found["probes"] += 1
        found["slope"] += (plus - minus) / (2 * shift) / squared
        found["curvature"] += (plus - 2 * loss + minus) / shift**2 / squared
        newton = BOLDNESS * found["slope"] / found["curvature"] if found["curvature"] > 0 else math.inf
        # Where the loss bends down, or hardly bends, the length may double, and a new probe goes so far.
        found["length"] = min(newton, 2 * shift)
        if found["slope"] <= 0:
            found["length"] = 0.0
            logger.warning(
                "the loss does not fall along the guide (%.3g of its slope): no step is made", self.slope_share
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> float:  # type: ignore[override]
        """Apply the estimates made since the last step; returns the mean loss.

        Raises DivergenceError where `max_skipped` steps in a row had a loss that is not finite, and RuntimeError where
        there is nothing to apply.
        """
        if self._weight == 0:
            raise RuntimeError("Guided.step() has no estimate to apply: call estimate() first")
        loss, weight, factors, found = self._loss / self._weight, self._weight, self._factors, self.progress
        self._clear()
        norm = math.sqrt(sum(one.squared() for one in factors.values())) / weight
        if math.isfinite(loss) and math.isfinite(norm):
            found["skipped_in_a_row"] = 0
            self._move(factors, weight, norm)
        else:
            found["skipped"] += 1
            found["skipped_in_a_row"] += 1
        found["step"] += 1
        if found["skipped_in_a_row"] >= self.max_skipped:
            raise DivergenceError(f"{self.max_skipped} steps in a row had a loss that is not finite")
        return loss

    def _move(self, factors: Mapping[str, Factors], weight: float, norm: float) -> None:
        found = self.progress
        norms = deque(found["norms"], REMEMBERED)
        norms.append(norm)
        found["norms"] = list(norms)
        clipped = min(1.0, statistics.median(norms) / norm) if norm else 0.0
        for group in self.param_groups:
            length = float(group["lr"]) * found["length"]
            for name, p in named(group):
                if name in factors:
                    key = noise_key(self.seed, found["step"], 0, name)
                    for rows in row_slices(p):
                        update = factors[name].rows(rows).mul_(-length * clipped / weight)
                        move_rows(p, rows, update, key, length * group["weight_decay"], self.rounding, None)

    def _clear(self) -> None:
        self._factors: dict[str, Factors] = {}
        self._loss = self._weight = 0.0
