"""Directions in a part of the weights only (Sparse-MeZO: Liu et al. 2024, arXiv 2402.15751).

    z = m * u,   u ~ N,   m = 1 where |theta| <= h, else 0

h is chosen once for each tensor, before the first step, so that a share 1 - sparsity of its weights are below it: small
weights are tuned, large ones stay. m is computed from the weights as they are, and never stored.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from justforward.noise import NOISE_VERSION
from justforward.optim.directions.base import DIRECTIONS, Directions, Place, as_matrix
from justforward.optim.directions.dense import CounterNoise


@DIRECTIONS.register("sparse")
class Sparse(Directions):
    """See the module. sparsity: the share of weights that are left alone."""

    name = "sparse"

    def __init__(self, sparsity: float = 0.75):
        if not 0 < sparsity < 1:
            raise ValueError(f"sparsity must be between 0 and 1, got {sparsity}")
        self.sparsity = sparsity
        self.version = f"{NOISE_VERSION}-sparse"
        self.dense = CounterNoise()
        self.limits: dict[str, float] = {}

    def describe(self) -> dict[str, Any]:
        """See Directions."""
        return {"sparsity": self.sparsity}

    def state(self) -> dict[str, Any]:
        """The limits h by parameter."""
        return dict(self.limits)

    def load_state(self, state: dict[str, Any]) -> None:
        """See Directions."""
        self.limits = dict(state)

    def values(self, name: str, p: Tensor, place: Place, rows: slice | Tensor) -> Tensor:
        """See Directions."""
        if name not in self.limits:  # before the first step: the weights are those that the run starts from
            count = max(1, math.floor((1 - self.sparsity) * p.numel()))
            self.limits[name] = float(p.detach().abs().flatten().kthvalue(count).values)
        matrix = as_matrix(p.detach())
        z = self.dense.values(name, p, place, rows)
        return z.mul_(matrix[rows].abs().float() <= torch.tensor(self.limits[name], device=p.device))
