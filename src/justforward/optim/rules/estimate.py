"""From measured losses to projected gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from justforward.optim.log import quantize


def _ranks(values: list[float]) -> list[float]:
    """Centred ranks in [-1/2, 1/2]; equal values share their mean rank."""
    if not all(math.isfinite(v) for v in values):
        return [math.nan] * len(values)
    below = [sum(w < v for w in values) for v in values]
    equal = [sum(w == v for w in values) for v in values]
    return [(b + (e - 1) / 2) / (len(values) - 1) - 0.5 for b, e in zip(below, equal, strict=True)]


def _zscores(values: list[float]) -> list[float]:
    """Values less their mean, over their standard deviation; zeros where all are equal."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [0.0 if deviation == 0 else (v - mean) / deviation for v in values]


SHAPINGS: dict[str, Callable[[list[float]], list[float]]] = {"none": list, "rank": _ranks, "zscore": _zscores}


@dataclass(frozen=True)
class Estimate:
    """What the probes of one step, or of one micro-batch, measured; one entry per direction (`samples` of them).

    losses: (plus, minus) at theta + eps z and theta - eps z; projected_grads: (plus - minus) / (2 eps), after shaping:
    an estimate of z . grad L.
    """

    losses: tuple[tuple[float, float], ...]
    projected_grads: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Mean of all losses measured."""
        return sum(plus + minus for plus, minus in self.losses) / (2 * len(self.losses))

    @property
    def projected_grad(self) -> float:
        """That of the first direction."""
        return self.projected_grads[0]

    @property
    def plus(self) -> float:
        """Loss at theta + eps z of the first direction."""
        return self.losses[0][0]

    @property
    def minus(self) -> float:
        """Loss at theta - eps z of the first direction."""
        return self.losses[0][1]


def make_estimate(losses: Sequence[float], *, eps: float, shaping: str = "none") -> Estimate:
    """The estimate of losses in the order plus, minus, plus, minus, ..., shaped as SHAPINGS says."""
    shaped = SHAPINGS[shaping](list(losses))
    return Estimate(
        losses=tuple(zip(losses[::2], losses[1::2], strict=True)),
        # Rounded to what a trajectory log keeps, so that a replay is the run: relative error 2^-16.
        projected_grads=tuple(quantize((a - b) / (2 * eps)) for a, b in zip(shaped[::2], shaped[1::2], strict=True)),
    )
