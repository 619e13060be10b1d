"""Directions in a cone around the momentum (ConMeZO: arXiv 2511.02757, Algorithm 1).

    z = cos(angle) sqrt(d) m / |m| + sin(angle) u,   u ~ N;   after a step: m <- beta m + (1 - beta) g z

d is the number of all trained weights, |m| the norm over all of them. The first direction, without a momentum, is u.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from justforward.noise import NOISE_VERSION
from justforward.optim.directions.base import DIRECTIONS, Directions, Place, as_matrix, row_slices
from justforward.optim.directions.dense import CounterNoise


@DIRECTIONS.register("cone")
class Cone(Directions):
    """See the module. angle in radians; the momentum is kept in float32, 4 bytes per weight."""

    name = "cone"

    def __init__(self, angle: float = 1.35, beta: float = 0.95):
        if not (0 < angle <= math.pi / 2 and 0 <= beta < 1):
            raise ValueError(f"angle must be in (0, pi/2] and beta in [0, 1), got {angle} and {beta}")
        self.angle, self.beta = angle, beta
        self.version = f"{NOISE_VERSION}-cone"
        self.dense = CounterNoise()
        self.momentum: dict[str, Tensor] = {}
        self._length = 0.0

    def describe(self) -> dict[str, Any]:
        """See Directions."""
        return {"angle": self.angle, "beta": self.beta}

    def state(self) -> dict[str, Any]:
        """The momentum by parameter."""
        return self.momentum

    def load_state(self, state: dict[str, Any]) -> None:
        """See Directions."""
        self.momentum = dict(state)
        self._measure()

    def state_bytes(self, parameters: Sequence[tuple[str, Tensor]]) -> int:
        """The momentum, in float32."""
        return sum(4 * p.numel() for _, p in parameters)

    def values(self, name: str, p: Tensor, place: Place, rows: slice | Tensor) -> Tensor:
        """See Directions."""
        u = self.dense.values(name, p, place, rows)
        if not self._length:
            return u
        count = sum(m.numel() for m in self.momentum.values())
        along = math.cos(self.angle) * math.sqrt(count) / self._length
        return u.mul_(math.sin(self.angle)).add_(as_matrix(self.momentum[name])[rows].to(u.device), alpha=along)

    def learn(self, parameters: Sequence[tuple[str, Tensor]], place: Place, projected_grads: Sequence[float]) -> None:
        """See Directions: the step's estimate is the mean of g z over its directions."""
        for name, p in parameters:
            m = self.momentum.get(name)
            if m is None:
                m = self.momentum[name] = torch.zeros(p.shape, device=p.device)
            for rows in row_slices(p):
                part = as_matrix(m)[rows]
                estimate = torch.zeros_like(part)
                for sample, g in enumerate(projected_grads):
                    z = self.values(name, p, place._replace(sample=sample), rows)
                    estimate.add_(z, alpha=g / len(projected_grads))
                part.mul_(self.beta).add_(estimate, alpha=1 - self.beta)
        self._measure()

    def _measure(self) -> None:
        parts = (as_matrix(m)[rows] for m in self.momentum.values() for rows in row_slices(m))
        self._length = math.sqrt(sum(float(part.double().square().sum()) for part in parts))
