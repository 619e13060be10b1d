"""Where a step's direction z comes from: regenerated from its seed for every pass, never stored."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from justforward.noise import NOISE_VERSION, backend, noise_key
from justforward.optim.distribution.shards import pieces


class NoiseSource(Protocol):
    """Adds a direction z, or any multiple of it, to parameters."""

    version: str
    """Names the definition of z: equal versions, seeds and names give equal z."""

    def add_(
        self,
        parameters: Sequence[tuple[str, Tensor]],
        *,
        seed: int,
        step: int,
        sample: int,
        scales: Sequence[float],
        decays: Sequence[float],
    ) -> None:
        """In place, for every named parameter: p <- p * (1 - decay) + scale * z(seed, step, sample, name)."""
        ...


@dataclass
class CounterNoise:
    """z as a function of (seed, step, sample, parameter name, element index): the same bits on every device.

    distribution: "gaussian", the paper's, or "rademacher" (+1 or -1), several times cheaper to draw.
    """

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


@dataclass
class Perturbation:
    """What all modules compute with during one probe.

    keys, scales: by parameter name, the noise key and eps times the sign (of the first half, if `paired`);
    reached: names of parameters whose owner was called; moved: perturbed copies of parameters of few elements.
    """

    keys: dict[str, int]
    scales: dict[str, float]
    distribution: str
    paired: bool
    reached: set[str] = field(default_factory=set)
    moved: list[dict[str, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Direction:
    """One z, scaled: theta + sign * eps * z for the named parameters; eps holds one number per parameter."""

    parameters: Sequence[tuple[str, Tensor]]
    eps: Sequence[float]
    noise: NoiseSource
    seed: int
    step: int
    sample: int

    def add_(self, sign: float) -> None:
        """Move all parameters, in place."""
        scales = [sign * eps for eps in self.eps]
        decays = [0.0] * len(scales)
        where = {"seed": self.seed, "step": self.step, "sample": self.sample}
        self.noise.add_(self.parameters, **where, scales=scales, decays=decays)

    def only(self, names: set[str]) -> Direction:
        """The same direction in the parameters of these names, and none in the others."""
        kept = [i for i, (name, _) in enumerate(self.parameters) if name in names]
        return dataclasses.replace(self, parameters=[self.parameters[i] for i in kept], eps=[self.eps[i] for i in kept])

    def perturbation(self, sign: float, *, paired: bool = False) -> Perturbation:
        """What modules compute with at theta + sign * eps * z."""
        assert isinstance(self.noise, CounterNoise)
        keys = {name: noise_key(self.seed, self.step, self.sample, name) for name, _ in self.parameters}
        scales = {name: sign * eps for (name, _), eps in zip(self.parameters, self.eps, strict=True)}
        return Perturbation(keys, scales, self.noise.distribution, paired)
