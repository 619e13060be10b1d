"""Directions of low rank, one draw of U per step (LOZO: Chen et al. 2024, arXiv 2410.07698, Algorithm 1).

    z = U V^T / sqrt(r),   U [rows, r] ~ N of every step,   V [width, r] ~ N kept for `refresh` steps

Entries of z have variance 1, so that MeZO's eps and learning rate carry over. With c = z . grad L the update c z is the
paper's c' U V^T / r for c' = U V^T . grad L (its published code leaves the 1 / r out). V is drawn by the number of its
window, so that the direction that is applied is the one that was probed at every step, the first of a window included.
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


@DIRECTIONS.register("low_rank")
class LowRank(Coordinates):
    """See the module. Vectors (norms, biases) get Gaussian noise.

    rank: r; refresh: steps that V is kept. The coordinates of a matrix are U.
    """

    name = "low_rank"
    small_parts = True

    def __init__(self, rank: int = 2, refresh: int = 50):
        super().__init__()
        if rank < 1 or refresh < 1:
            raise ValueError(f"rank and refresh must be at least 1, got {rank} and {refresh}")
        self.rank, self.refresh = rank, refresh
        self.version = f"{NOISE_VERSION}-low-rank"
        self._kept: dict[str, tuple[int, Tensor]] = {}

    def describe(self) -> dict[str, Any]:
        """See Directions."""
        return {"rank": self.rank, "refresh": self.refresh}

    def coordinate_shape(self, p: Tensor) -> tuple[int, int] | None:
        """See Coordinates."""
        rows, width = as_matrix(p).shape
        return (rows, self.rank) if min(rows, width) > self.rank else None

    def coordinates(self, name: str, p: Tensor, place: Place) -> Tensor | None:
        """U: [rows, r]."""
        shape = self.coordinate_shape(p)
        return None if shape is None else _normal(shape, noise_key(*place, f"{name} U"), p.device)

    def lift(self, name: str, p: Tensor, place: Place, coordinates: Tensor, rows: slice | Tensor) -> Tensor:
        """U V^T / sqrt(r), of some rows."""
        return coordinates[rows] @ self._right(name, p, place).T

    def factors(self, name: str, p: Tensor, place: Place) -> tuple[Tensor, Tensor] | None:
        """U and V / sqrt(r)."""
        u = self.coordinates(name, p, place)
        return None if u is None else (u, self._right(name, p, place))

    def carry(self, name: str, p: Tensor, place: Place, kept: dict[str, Tensor]) -> None:
        """A momentum N of U continues under the new V: N <- N V_old^T V_new / width (section 4)."""
        if place.step % self.refresh or not place.step:
            return
        old = self._right(name, p, place._replace(step=place.step - 1)).clone()
        turn = self.rank * old.T @ self._right(name, p, place) / old.shape[0]
        for value in kept.values():
            value.copy_(value @ turn)

    def state_bytes(self, parameters: Sequence[tuple[str, Tensor]]) -> int:
        """V, in float32."""
        widths = [as_matrix(p).shape for _, p in parameters]
        return sum(4 * self.rank * width for rows, width in widths if min(rows, width) > self.rank)

    def _right(self, name: str, p: Tensor, place: Place) -> Tensor:
        """V / sqrt(r) of the step's window: [width, r]."""
        window = place.step // self.refresh
        found, v = self._kept.get(name, (-1, None))
        if v is None or found != window or v.device != p.device:
            key = noise_key(place.seed, window, 0, f"{name} V")
            v = _normal((as_matrix(p).shape[1], self.rank), key, p.device) / math.sqrt(self.rank)
            self._kept[name] = (window, v)
        return v


def _normal(shape: tuple[int, int], key: int, device: torch.device) -> Tensor:
    drawn = torch.empty(shape, device=device)
    backend(device).fill_(drawn, key)
    return drawn
