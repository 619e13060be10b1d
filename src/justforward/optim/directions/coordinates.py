"""Directions of a matrix that a few numbers give: z = lift(coordinates)."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from justforward.optim.directions.base import Place, as_matrix
from justforward.optim.directions.dense import DenseElsewhere


class Coordinates(DenseElsewhere):
    """A source whose z of a matrix is linear in small coordinates, which rules (momentum, Adam) may keep state for.

    A parameter without coordinates (a vector, a small matrix) gets Gaussian noise.
    """

    def is_dense(self, p: Tensor) -> bool:
        """See DenseElsewhere."""
        return self.coordinate_shape(p) is None

    @abstractmethod
    def coordinate_shape(self, p: Tensor) -> tuple[int, int] | None:
        """The shape of a parameter's coordinates; None for one that has dense noise."""

    @abstractmethod
    def coordinates(self, name: str, p: Tensor, place: Place) -> Tensor | None:
        """The coordinates of z, float32; None for a parameter that has dense noise."""

    @abstractmethod
    def lift(self, name: str, p: Tensor, place: Place, coordinates: Tensor, rows: slice | Tensor) -> Tensor:
        """Some rows of the matrix that coordinates stand for at a step: [rows, width], float32."""

    def carry(self, name: str, p: Tensor, place: Place, kept: dict[str, Tensor]) -> None:
        """Bring a rule's state, as it was after the step before, into this step's coordinates; in place."""

    def values(self, name: str, p: Tensor, place: Place, rows: slice | Tensor) -> Tensor:
        """See Directions."""
        found = self.coordinates(name, p, place) if as_matrix(p).shape[0] > 1 else None
        return self.dense.values(name, p, place, rows) if found is None else self.lift(name, p, place, found, rows)
