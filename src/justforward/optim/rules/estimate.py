"""From measured losses to projected gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from justforward.optim.log import quantize


def _as_they_are(values: list[float], perturbed: list[float]) -> list[float]:
    return values


def _ranks(values: list[float], perturbed: list[float]) -> list[float]:
    """Centred ranks in [-1/2, 1/2]; equal values share their mean rank."""
    if not all(math.isfinite(v) for v in values):
        return [math.nan] * len(values)
    below = [sum(w < v for w in values) for v in values]
    equal = [sum(w == v for w in values) for v in values]
    return [(b + (e - 1) / 2) / (len(values) - 1) - 0.5 for b, e in zip(below, equal, strict=True)]


def _zscores(values: list[float], perturbed: list[float]) -> list[float]:
    """Values less the perturbed ones' mean, over their standard deviation; zeros where all are equal."""
    mean = sum(perturbed) / len(perturbed)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in perturbed) / len(perturbed))
    return [0.0 if deviation == 0 else (v - mean) / deviation for v in values]


def _over_deviation(values: list[float], perturbed: list[float]) -> list[float]:
    """Values over the perturbed ones' sample standard deviation; zeros where all are equal."""
    mean = sum(perturbed) / len(perturbed)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in perturbed) / max(1, len(perturbed) - 1))
    return [0.0 if deviation == 0 else v / deviation for v in values]


SHAPINGS: dict[str, Callable[[list[float], list[float]], list[float]]] = {
    "none": _as_they_are,
    "rank": _ranks,
    "zscore": _zscores,
    "deviation": _over_deviation,
    "second_moment": _as_they_are,
    "spread": _as_they_are,
}
"""What becomes of a step's losses before they are differenced, given all of them and those of perturbed weights.

"deviation" is FZOO's scale (arXiv 2506.09034). Two are applied to the projected gradients: "second_moment" is a scale
over steps, see `over_second_moment`; "spread" one over the directions of a step, whose losses may be of different data
(GRZO: arXiv 2606.02857; it divides by the standard deviation, which is nothing where all agree, and this by the root
mean square).
"""

FEWEST = 5
"""Of fewer losses, z-scores hardly depend on what was measured: of two they are always -1 and 1."""


SECOND_MOMENT_DECAY = 0.99


def over_second_moment(kept: dict[str, Any], projected_grads: Sequence[float]) -> tuple[float, ...]:
    """One scale for all weights (MEAZO: arXiv 2605.03869): g / sqrt(v), v <- beta v + (1 - beta) mean(g^2).

    `kept` holds v and the number of steps, which corrects v for its start at zero. Zeros where there were only zeros.
    """
    mean = sum(g * g for g in projected_grads) / len(projected_grads)
    kept["v"] = SECOND_MOMENT_DECAY * kept.get("v", 0.0) + (1 - SECOND_MOMENT_DECAY) * mean
    kept["steps"] = kept.get("steps", 0) + 1
    root = math.sqrt(kept["v"] / (1 - SECOND_MOMENT_DECAY ** kept["steps"]))
    return tuple(g / root if root else 0.0 for g in projected_grads)


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


def make_estimate(
    losses: Sequence[float], *, eps: float, shaping: str = "none", sides: int = 2, clip: float | None = None
) -> Estimate:
    """The estimate of losses in the order plus, minus, plus, minus, ..., shaped as SHAPINGS says.

    sides: 1 where "minus" is the loss at theta, the same for all directions; clip: what projected gradients are cut to,
    in magnitude.
    """
    pluses, minuses = list(losses[::2]), list(losses[1::2])
    if sides == 2:
        shaped = SHAPINGS[shaping](list(losses), list(losses))
        pairs = zip(shaped[::2], shaped[1::2], strict=True)
    else:
        base, *shaped = SHAPINGS[shaping]([minuses[0], *pluses], pluses)
        pairs = ((value, base) for value in shaped)
    projected_grads = [(a - b) / (sides * eps) for a, b in pairs]
    if shaping == "spread":
        root = math.sqrt(sum(g * g for g in projected_grads) / len(projected_grads))
        projected_grads = [g / root if root else 0.0 for g in projected_grads]
    if clip is not None:  # what is no number stays none, and its step is skipped
        projected_grads = [math.copysign(min(abs(g), clip), g) if math.isfinite(g) else g for g in projected_grads]
    return Estimate(
        losses=tuple(zip(pluses, minuses, strict=True)),
        # Rounded to what a trajectory log keeps, so that a replay is the run: relative error 2^-16.
        projected_grads=tuple(quantize(g) for g in projected_grads),
    )
