"""Directions of low rank of which nothing is kept (EGGROLL: arXiv 2511.16652).

    z = A B^T / sqrt(r),   A [rows, r], B [width, r] ~ N of every direction

All directions of a step are drawn under one key, one behind the other, so that a launch draws as many as are needed.
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
from justforward.optim.directions.base import DIRECTIONS, Place, as_matrix
from justforward.optim.directions.dense import DenseElsewhere


@DIRECTIONS.register("outer")
class Outer(DenseElsewhere):
    """See the module. rank: r. Vectors, and matrices with a side of at most r, get Gaussian noise."""

    name = "outer"
    small_parts = True

    def __init__(self, rank: int = 1):
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        self.rank = rank
        self.version = f"{NOISE_VERSION}-outer-2"
        self._last: tuple[Any, tuple[Tensor, Tensor]] | None = None

    def describe(self) -> dict[str, Any]:
        """See Directions."""
        return {"rank": self.rank}

    def is_dense(self, p: Tensor) -> bool:
        """See DenseElsewhere."""
        return min(as_matrix(p).shape) <= self.rank

    def values(self, name: str, p: Tensor, place: Place, rows: slice | Tensor) -> Tensor:
        """See Directions."""
        found = self.factors(name, p, place)
        return self.dense.values(name, p, place, rows) if found is None else found[0][rows] @ found[1].T

    def factors(self, name: str, p: Tensor, place: Place) -> tuple[Tensor, Tensor] | None:
        """A and B / sqrt(r)."""
        found = self.stacked(name, p, [place])
        return None if found is None else (found[0][0], found[1][0])

    def stacked(self, name: str, p: Tensor, places: Sequence[Place]) -> tuple[Tensor, Tensor] | None:
        """See Directions; one launch."""
        if self.is_dense(p):
            return None
        rows, width = as_matrix(p).shape
        of = (name, rows, width, p.device, *places)
        if self._last is None or self._last[0] != of:  # those of one parameter are asked for piece by piece
            first, count = places[0], len(places)
            both = torch.empty((count, (rows + width) * self.rank), device=p.device)
            together = [place.sample for place in places] == list(range(first.sample, first.sample + count))
            for place, part in [(first, both)] if together else zip(places, both, strict=True):
                key = noise_key(*place._replace(sample=0), f"{name} AB")
                backend(p.device).fill_(part, key, place.sample * both.shape[1])
            parts = both.view(count, rows + width, self.rank)
            self._last = (of, (parts[:, :rows], parts[:, rows:].div_(math.sqrt(self.rank))))
        return self._last[1]

    def combined(self, name: str, p: Tensor, place: Place, coefficients: Sequence[float], rows: slice) -> Tensor:
        """See Directions."""
        found = self.stacked(name, p, [place._replace(sample=i) for i in range(len(coefficients))])
        if found is None:
            return super().combined(name, p, place, coefficients, rows)
        weighted = found[0][:, rows] * torch.tensor(coefficients, device=p.device)[:, None, None]
        left, right = (part.permute(1, 0, 2).flatten(1) for part in (weighted, found[1]))
        return left @ right.T
