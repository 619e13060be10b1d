"""What a probe evaluates, and when two losses are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from justforward.optim.directions.base import Owners

Loss = Tensor | float
Closure = Callable[[], Loss]
PairedClosure = Callable[[], Tensor]
"""Evaluates a doubled batch: [2], the loss of its first and that of its second half."""


@dataclass(frozen=True)
class Shares:
    """A batch whose examples are divided among the directions of a step.

    count: M, how many directions there are; alone: the part of the batch's loss that is one direction's share, times M;
    together: [M], all of them in one pass, in which `owners` is told whose each row is before every forward. The mean
    over directions is the loss of the batch.
    """

    count: int
    alone: Callable[[int], Loss]
    together: Callable[[Owners], Tensor] | None = None


@dataclass(frozen=True)
class Copies:
    """A batch that is evaluated several times over in one pass, each time at a direction of its own.

    most: how many copies a pass takes; losses: so many of them, [copies], told whose each row is.
    """

    most: int
    losses: Callable[[int, Owners], Tensor]


TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest difference of two probes' losses that rounding explains, relative to the loss where that is above 1."""

EXACT = 1e-3
"""The same where models of 16-bit weights compute in float32, and directions are added to them there."""


def tolerance(weights: Sequence[Tensor]) -> float:
    """That of the coarsest dtype of the weights."""
    return max(TOLERANCE.get(w.dtype, 1e-4) for w in weights)


def close(a: Loss, b: Loss, most: float) -> bool:
    """Whether two losses are equal up to rounding."""
    a, b = float(a), float(b)
    return abs(a - b) <= most * max(1.0, abs(b)) or not (math.isfinite(a) and math.isfinite(b))
