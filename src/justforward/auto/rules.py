"""From measured losses to the size of the probe and the learning rate. docs/choosing.md derives both rules.

The size of the probe is the classic trade of a central difference: rounding noise falls as 1 / eps, the third-order
term grows as eps^2 (Moré and Wild 2014, "Do you trust derivatives or differences?"). The learning rate is the one with
the largest expected decrease of a step on a quadratic: 1 / E[z^T H z], times the share of the projected gradient's
square that is signal and not the batch's noise (McCandlish et al. 2018), times SAFETY.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""The sizes that are tried."""

ERROR = 0.1
"""Largest third-order part of a projected gradient, and largest part of rounding, relative to its root mean square."""

SAFETY = 1 / 3
"""E[g^2 z^T H z] is up to three times E[g^2] E[z^T H z]: so much where H has rank 1 and the gradient lies along it."""

LEAST_SIGNAL = 0.1
"""Few directions and batches cannot tell a smaller share of signal from none."""


@dataclass(frozen=True)
class Rung:
    """One size of the probe. All are root mean squares over directions.

    gradient: the projected gradient; rounding, bias: the parts of it that are the losses' rounding, and of third order.
    """

    eps: float
    gradient: float
    rounding: float
    bias: float
    agrees: bool


@dataclass(frozen=True)
class EpsProposal:
    """eps, and why; rounding is the standard deviation of one loss difference."""

    eps: float
    rounding: float
    rungs: tuple[Rung, ...]
    reason: str


@dataclass(frozen=True)
class RateProposal:
    """The learning rate, and why. curvature: root mean square of z^T H z; signal: see the module."""

    learning_rate: float
    curvature: float
    spread: float
    signal: float
    reason: str


def propose_eps(differences: Mapping[float, Sequence[float]]) -> EpsProposal:
    """The largest eps whose projected gradients agree with those of the next smaller one, free of rounding.

    Args:
        differences: for each eps of a ladder the loss differences L(theta + eps z) - L(theta - eps z) along the same
            directions z.

    Raises ValueError where fewer than three sizes can be used: losses not finite, or the same on both sides.
    """
    usable = [eps for eps in sorted(differences) if _usable(differences[eps])]
    if len(usable) < 3:
        raise ValueError(
            "auto: the loss is not finite, or does not change, at most probes from "
            f"{min(differences):g} to {max(differences):g}: give --zo_eps and --learning_rate numbers"
        )
    rounding = _rounding(differences, usable)
    rungs = [_rung(differences, usable, i, rounding) for i in range(len(usable))]
    agreeing = [rung for rung in rungs if rung.agrees]
    if agreeing:
        chosen = agreeing[-1]
        reason = "the largest at which the projected gradient agrees with that of the next smaller one"
    else:
        chosen = min(rungs[1:], key=lambda rung: rung.rounding + rung.bias)
        reason = "no two sizes agree well; this one has the smallest error"
    reason += f": of {chosen.gradient:.3g}, {chosen.bias:.2g} is of third order and {chosen.rounding:.2g} rounding"
    return EpsProposal(chosen.eps, rounding, tuple(rungs), reason)


def propose_rate(
    gradients: Sequence[Sequence[float]],
    curvatures: Sequence[Sequence[float]],
    *,
    batches_per_step: int = 1,
    samples: int = 1,
    curvature_rounding: float = 0.0,
) -> RateProposal:
    """SAFETY * samples * signal / curvature.

    Args:
        gradients: projected gradients z . grad L, for each direction on each of the same batches.
        curvatures: second differences z^T H z, likewise.
        batches_per_step: how many such batches one step averages.
        samples: directions per step.
        curvature_rounding: the standard deviation that rounding of the loss gives one second difference.

    Raises ValueError where the loss is not finite, or flat, along the directions.
    """
    values = [v for rows in (gradients, curvatures) for row in rows for v in row]
    by_direction = [_mean(row) for row in curvatures]
    # Of both signs, the mean may be small by cancelling; the root mean square is never smaller than it.
    curvature = _rms(by_direction)
    if not all(math.isfinite(v) for v in values) or curvature == 0:
        raise ValueError(
            "--learning_rate auto: the loss is not finite, or flat, along the directions tried: give --learning_rate a "
            "number"
        )
    spread = _rms([k - _mean(by_direction) for k in by_direction])
    signal = _signal(gradients, batches_per_step)
    rate = float(f"{SAFETY * samples * signal / curvature:.1e}")
    directions = "" if samples == 1 else f" x {samples} directions"
    reason = (
        f"{SAFETY:.2g}{directions} x {signal:.2f} (the share of signal in a step's projected gradient) / "
        f"{curvature:.3g} (curvature along z; its mean is {_mean(by_direction):.3g}, its spread {spread:.2g})"
    )
    noise = curvature_rounding / math.sqrt(len(curvatures[0]))
    if curvature < 2 * noise:
        reason += f"; the curvature is hidden by rounding ({noise:.2g}): the true one is smaller"
    return RateProposal(rate, curvature, spread, signal, reason)


def _usable(differences: Sequence[float]) -> bool:
    """Finite; and not mostly zero, as where 16-bit weights swallow the probe."""
    return all(math.isfinite(d) for d in differences) and sum(d == 0 for d in differences) <= len(differences) / 2


def _rounding(differences: Mapping[float, Sequence[float]], usable: Sequence[float]) -> float:
    """Standard deviation of a loss difference: at the smallest sizes it is linear in eps but for rounding.

    Of two pairs of sizes the smaller deviation counts: the other may be of third order.
    """
    found = []
    for small, large in itertools.pairwise(usable[:3]):
        ratio = large / small
        pairs = zip(differences[small], differences[large], strict=True)
        found.append(_rms([b - ratio * a for a, b in pairs]) / math.sqrt(1 + ratio**2))
    return min(found)


def _rung(differences: Mapping[float, Sequence[float]], usable: Sequence[float], i: int, rounding: float) -> Rung:
    eps = usable[i]
    gradients = [d / (2 * eps) for d in differences[eps]]
    own_noise = rounding / (2 * eps)
    if i == 0:
        return Rung(eps, _rms(gradients), own_noise, 0.0, False)
    smaller = usable[i - 1]
    below = [d / (2 * smaller) for d in differences[smaller]]
    noise_below = rounding / (2 * smaller)
    moved = _rms([b - a for a, b in zip(below, gradients, strict=True)]) ** 2
    expected = own_noise**2 + noise_below**2
    # Of third order c eps^2, the difference of two sizes shows the part that the smaller one has not.
    bias = math.sqrt(max(0.0, moved - expected)) / (1 - (smaller / eps) ** 2)
    scale = math.sqrt(max(0.0, _rms(below) ** 2 - noise_below**2))
    return Rung(eps, _rms(gradients), own_noise, bias, max(bias, own_noise) <= ERROR * scale)


def _signal(gradients: Sequence[Sequence[float]], batches_per_step: int) -> float:
    """Share of the true projected gradient's square in that of a step; products of two batches have no noise."""
    batches = len(gradients[0])
    if batches == 1:
        return 1.0
    square = _mean([g * g for row in gradients for g in row])
    if square == 0:
        return LEAST_SIGNAL
    product = _mean([a * b for row in gradients for i, a in enumerate(row) for b in row[:i]])
    share = min(1.0, max(product / square, 1e-9))
    return max(LEAST_SIGNAL, 1 / (1 + (1 / share - 1) / batches_per_step))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(_mean([v * v for v in values]))
