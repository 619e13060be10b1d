"""Zeroth-order SGD (MeZO, Algorithm 1): theta <- theta - lr (g z + weight_decay theta)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Move:
    """p <- p (1 - decay) + scale z, for z of direction number `sample`; scales and decays: one per parameter group."""

    sample: int
    scales: list[float]
    decays: list[float]


def moves(groups: Sequence[Mapping[str, Any]], projected_grads: Sequence[float]) -> Iterator[Move]:
    """The moves of one step: the mean over its directions, and the weight decay with the first of them.

    groups: the optimiser's, each with "lr", "eps" and "weight_decay". Projected gradients are in units of the first
    group's eps; the others are rescaled to their own.
    """
    samples = len(projected_grads)
    for sample, projected_grad in enumerate(projected_grads):
        scales, decays = [], []
        for group in groups:
            rescaled = projected_grad * groups[0]["eps"] / group["eps"]
            scales.append(-float(group["lr"]) * rescaled / samples)
            decays.append(float(group["lr"]) * group["weight_decay"] if sample == 0 else 0.0)
        yield Move(sample, scales, decays)
