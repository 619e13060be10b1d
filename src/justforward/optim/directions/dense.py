"""A z of its own for every weight, as MeZO has it."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from justforward.noise import NOISE_VERSION, backend, noise_key
from justforward.optim.directions.base import DIRECTIONS, Directions, Place, as_matrix
from justforward.optim.distribution.shards import pieces


@DIRECTIONS.register("dense")
@dataclass
class CounterNoise(Directions):
    """z as a function of (seed, step, sample, parameter name, element index): the same bits on every device.

    distribution: "gaussian", the paper's, or "rademacher" (+1 or -1), several times cheaper to draw.
    """

    name = "dense"
    draws_in_place = True

    distribution: str = "gaussian"
    version: str = field(init=False)

    def __post_init__(self) -> None:
        if self.distribution not in ("gaussian", "rademacher"):
            raise ValueError(f"unknown noise distribution '{self.distribution}'; known: gaussian, rademacher")
        self.version = f"{NOISE_VERSION}-{self.distribution}"

    def add_(
        self,
        parameters: Sequence[tuple[str, Tensor]],
        *,
        seed: int,
        step: int,
        sample: int,
        scales: Sequence[float],
        decays: Sequence[float],
        rounding: str = "nearest",
        residuals: Sequence[Tensor | None] | None = None,
    ) -> None:
        """See NoiseSource, and `NoiseBackend.add_` for rounding and residuals; one launch per device.

        Of a parameter that ranks share, this rank's part is moved, by the elements of z that are the part's.
        """
        by_device: dict[torch.device, list[tuple[int, Tensor, int, Tensor | None]]] = {}
        for i, (_, p) in enumerate(parameters):
            residual = None if residuals is None else residuals[i]
            kept = itertools.repeat((None, 0)) if residual is None else pieces(residual)
            for (piece, start), (rest, _) in zip(pieces(p), kept, strict=False):
                by_device.setdefault(p.device, []).append((i, piece, start, rest))
        for device, moved in by_device.items():
            backend(device).add_(
                [piece for _, piece, _, _ in moved],
                [noise_key(seed, step, sample, parameters[i][0]) for i, *_ in moved],
                [scales[i] for i, *_ in moved],
                [decays[i] for i, *_ in moved],
                starts=[start for _, _, start, _ in moved],
                distribution=self.distribution,
                rounding=rounding,
                residuals=None if residuals is None else [rest for *_, rest in moved],
            )

    def values(self, name: str, p: Tensor, place: Place, rows: slice | Tensor) -> Tensor:
        """See Directions."""
        width = as_matrix(p).shape[1]
        if isinstance(rows, slice):
            z = torch.empty((rows.stop - rows.start, width), device=p.device)
            backend(p.device).fill_(z, noise_key(*place, name), rows.start * width, self.distribution)
            return z
        z, keys = torch.zeros((len(rows), width), device=p.device), [noise_key(*place, name)] * len(rows)
        starts = [row * width for row in rows.tolist()]
        backend(p.device).add_(list(z), keys, 1.0, distribution=self.distribution, starts=starts)
        return z

    def combined(self, name: str, p: Tensor, place: Place, coefficients: Sequence[float], rows: slice) -> Tensor:
        """See Directions; one launch."""
        width = as_matrix(p).shape[1]
        z = torch.zeros((len(coefficients), (rows.stop - rows.start) * width), device=p.device)
        keys = [noise_key(*place._replace(sample=i), name) for i in range(len(z))]
        starts = rows.start * width
        backend(p.device).add_(list(z), keys, coefficients, distribution=self.distribution, starts=starts)
        return z.sum(0).view(-1, width)

    def perturb_many(
        self,
        outs: Sequence[Tensor],
        tensors: Sequence[Tensor],
        wholes: Sequence[tuple[str, Tensor]],
        place: Place,
        scales: Sequence[float],
        first: int = 0,
        mirrors: Sequence[Tensor] | None = None,
    ) -> None:
        """See Directions; one launch, and both signs from one draw."""
        backend(tensors[0].device).perturb_many(
            outs,
            tensors,
            [noise_key(*place, name) for name, _ in wholes],
            scales,
            starts=[first * as_matrix(p).shape[1] for _, p in wholes] if first else 0,
            distribution=self.distribution,
            mirrors=mirrors,
        )

    def perturb_rows(
        self,
        out: Tensor,
        weight: tuple[str, Tensor],
        rows: Tensor,
        place: Place,
        scale: float,
        mirror: Tensor | None = None,
    ) -> None:
        """See Directions."""
        name, p = weight
        key = noise_key(*place, name)
        backend(p.device).perturb_rows(out, p.detach(), rows, key, scale, self.distribution, mirror=mirror)


class DenseElsewhere(Directions):
    """A source that has Gaussian noise for the parameters it has nothing else for, such as vectors."""

    def __init__(self) -> None:
        self.dense = CounterNoise()

    @abstractmethod
    def is_dense(self, p: Tensor) -> bool:
        """Whether a parameter has Gaussian noise."""

    def combined(self, name: str, p: Tensor, place: Place, coefficients: Sequence[float], rows: slice) -> Tensor:
        """See Directions."""
        source = self.dense.combined if self.is_dense(p) else super().combined
        return source(name, p, place, coefficients, rows)

    def perturb_many(
        self,
        outs: Sequence[Tensor],
        tensors: Sequence[Tensor],
        wholes: Sequence[tuple[str, Tensor]],
        place: Place,
        scales: Sequence[float],
        first: int = 0,
        mirrors: Sequence[Tensor] | None = None,
    ) -> None:
        """See Directions; one launch for all that have Gaussian noise."""
        for dense in (True, False):
            kept = [i for i, (_, p) in enumerate(wholes) if self.is_dense(p) == dense]
            if kept:
                source = self.dense.perturb_many if dense else super().perturb_many
                source(
                    [outs[i] for i in kept],
                    [tensors[i] for i in kept],
                    [wholes[i] for i in kept],
                    place,
                    [scales[i] for i in kept],
                    first,
                    None if mirrors is None else [mirrors[i] for i in kept],
                )
