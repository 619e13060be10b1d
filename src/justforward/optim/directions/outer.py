"""Directions of low rank of which nothing is kept (EGGROLL: arXiv 2511.16652).

    z = A B^T / sqrt(r),   A [rows, r], B [width, r] ~ N of every direction

Entries of z have variance 1. Many of them share a step: the product with the weights is made once for a batch in which
each example, or group of examples, has its own, and their sum is one product of rank (directions x r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from justforward.noise import NOISE_VERSION, backend, noise_key
from justforward.optim.directions.base import DIRECTIONS, Directions, Place, as_matrix
from justforward.optim.directions.dense import CounterNoise


@DIRECTIONS.register("outer")
class Outer(Directions):
    """See the module. rank: r. Vectors, and matrices with a side of at most r, get Gaussian noise."""

    name = "outer"
    small_parts = True

    def __init__(self, rank: int = 1):
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        self.version = f"{NOISE_VERSION}-outer"
        self.dense = CounterNoise()
        self._last: tuple[Any, dict[int, tuple[Tensor, Tensor]]] = (None, {})

    def describe(self) -> dict[str, Any]:
        """See Directions."""
        return {"rank": self.rank}

    def values(self, name: str, p: Tensor, place: Place, rows: slice | Tensor) -> Tensor:
        """See Directions."""
        found = self.factors(name, p, place)
        return self.dense.values(name, p, place, rows) if found is None else found[0][rows] @ found[1].T

    def factors(self, name: str, p: Tensor, place: Place) -> tuple[Tensor, Tensor] | None:
        """A and B / sqrt(r)."""
        rows, width = as_matrix(p).shape
        if min(rows, width) <= self.rank:
            return None
        of = (name, rows, width, p.device, place.seed, place.step)
        if self._last[0] != of:
            self._last = (of, {})  # those of one parameter are asked for piece by piece
        made = self._last[1]
        if place.sample not in made:
            both = torch.empty((rows + width, self.rank), device=p.device)
            backend(p.device).fill_(both, noise_key(*place, f"{name} AB"))
            made[place.sample] = both[:rows], both[rows:].div_(math.sqrt(self.rank))
        return made[place.sample]

    def combined(self, name: str, p: Tensor, place: Place, coefficients: Sequence[float], rows: slice) -> Tensor:
        """See Directions."""
        found = [self.factors(name, p, place._replace(sample=i)) for i in range(len(coefficients))]
        if found[0] is None:
            return super().combined(name, p, place, coefficients, rows)
        left, right = [], []
        for pair, coefficient in zip(found, coefficients, strict=True):
            assert pair is not None
            left.append(pair[0][rows] * coefficient)
            right.append(pair[1])
        return torch.cat(left, dim=1) @ torch.cat(right, dim=1).T
