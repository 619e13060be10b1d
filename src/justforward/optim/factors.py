"""A direction of a weight as two thin factors, which is never made whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from justforward.noise import backend

GRAM = 1 << 22
"""Products of positions that are made at a time."""


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

    def random(self, key: int, norm: float) -> Factors:
        """A random direction of the same weight, of rank 1 and of this norm."""
        parts = [torch.empty(x.shape[1], device=x.device) for x in (self.error, self.inputs)]
        for start, part in zip((0, parts[0].numel()), parts, strict=True):
            backend(part.device).fill_(part, key, start)
        error, inputs = (part / part.norm() for part in parts)
        return Factors(norm * error[None], inputs[None], self.turned)
