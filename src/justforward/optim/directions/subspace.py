"""Directions in one shared subspace per matrix (SubZero: Yu et al. 2024, arXiv 2410.08989; SubZero+: arXiv 2608.15665).

    z = s U Z V^T,   U [rows, r], V [width, r] orthonormal and kept for `refresh` steps,   Z [r, r] ~ N of every step

s = sqrt(rows width) / r gives z the norm that dense noise has, so that MeZO's eps and learning rate carry over
(SubZero); SubZero+ has s = 1. U and V are the Q factors of Gaussian matrices, with the sign of R's diagonal moved into
Q: without that they would not be uniform (Mezzadri 2007). They are computed in float64 on the CPU and rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from justforward.noise import NOISE_VERSION, backend, noise_key
from justforward.optim.directions.base import DIRECTIONS, Place, as_matrix
from justforward.optim.directions.coordinates import Coordinates


@DIRECTIONS.register("subspace")
class Subspace(Coordinates):
    """See the module. Vectors (norms, biases) and matrices with a side of at most r get Gaussian noise.

    rank: r; refresh: steps that U and V are kept; matched: whether z has the norm of dense noise. The coordinates of a
    matrix are Z. What a rule keeps begins anew with every subspace.
    """

    name = "subspace"
    small_parts = True

    def __init__(self, rank: int = 24, refresh: int = 1000, *, matched: bool = True):
        super().__init__()
        if rank < 1 or refresh < 1:
            raise ValueError(f"rank and refresh must be at least 1, got {rank} and {refresh}")
        self.rank, self.refresh, self.matched = rank, refresh, matched
        self.version = f"{NOISE_VERSION}-subspace"
        self._kept: dict[str, tuple[int, Tensor, Tensor]] = {}

    def describe(self) -> dict[str, Any]:
        """See Directions."""
        return {"rank": self.rank, "refresh": self.refresh, "matched": self.matched}

    def coordinate_shape(self, p: Tensor) -> tuple[int, int] | None:
        """See Coordinates."""
        return (self.rank, self.rank) if min(as_matrix(p).shape) > self.rank else None

    def coordinates(self, name: str, p: Tensor, place: Place) -> Tensor | None:
        """Z: [r, r]."""
        shape = self.coordinate_shape(p)
        if shape is None:
            return None
        drawn = torch.empty(shape, device=p.device)
        backend(p.device).fill_(drawn, noise_key(*place, f"{name} Z"))
        return drawn

    def lift(self, name: str, p: Tensor, place: Place, coordinates: Tensor, rows: slice | Tensor) -> Tensor:
        """S U Z V^T, of some rows."""
        u, v = self._basis(name, p, place)
        return (u[rows] @ coordinates) @ v.T

    def factors(self, name: str, p: Tensor, place: Place) -> tuple[Tensor, Tensor] | None:
        """S U Z and V."""
        z = self.coordinates(name, p, place)
        if z is None:
            return None
        u, v = self._basis(name, p, place)
        return u @ z, v

    def carry(self, name: str, p: Tensor, place: Place, kept: dict[str, Tensor]) -> None:
        """A new subspace has nothing to do with the one before."""
        if place.step % self.refresh == 0:
            for value in kept.values():
                value.zero_()

    def age(self, step: int) -> int:
        """Steps since the subspace was chosen."""
        return step % self.refresh

    def state_bytes(self, parameters: Sequence[tuple[str, Tensor]]) -> int:
        """U and V, in float32."""
        shapes = [as_matrix(p).shape for _, p in parameters]
        return sum(4 * self.rank * (rows + width) for rows, width in shapes if min(rows, width) > self.rank)

    def _basis(self, name: str, p: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """S U [rows, r] and V [width, r] of the step's window."""
        window = place.step // self.refresh
        found = self._kept.get(name)
        if found is None or found[0] != window or found[1].device != p.device:
            rows, width = as_matrix(p).shape
            scale = math.sqrt(rows * width) / self.rank if self.matched else 1.0
            u = scale * _orthonormal(rows, self.rank, noise_key(place.seed, window, 0, f"{name} U"))
            v = _orthonormal(width, self.rank, noise_key(place.seed, window, 0, f"{name} V"))
            found = self._kept[name] = (window, u.to(p.device), v.to(p.device))
        return found[1], found[2]


def _orthonormal(rows: int, rank: int, key: int) -> Tensor:
    """[rows, rank] with orthonormal columns, uniformly distributed (Haar)."""
    drawn = torch.empty((rows, rank))
    backend("cpu").fill_(drawn, key)
    q, r = torch.linalg.qr(drawn.double())
    return (q * r.diagonal().sign()).float()
