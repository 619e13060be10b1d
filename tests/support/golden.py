"""The committed golden facts: recorded from the original program (see tests/fixtures/golden/README.md)."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIXTURES = Path(__file__).parents[1] / "fixtures"
DATA = str(FIXTURES / "golden" / "data")
MODEL = str(FIXTURES / "tiny-opt-4k")


@functools.cache
def facts(name: str) -> Any:
    """A file of golden facts, parsed."""
    return json.loads((FIXTURES / "golden" / f"{name}.json").read_text(encoding="utf-8"))


def epoch_order(sampler_seed: int, rows: int, count: int) -> list[int]:
    """The first `count` rows the original's loader visits: two permutations are drawn per epoch, one is used."""
    generator = torch.Generator().manual_seed(sampler_seed)
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(rows, generator=generator).tolist()
        torch.randperm(rows, generator=generator)
    return order[:count]


class OriginalNoise:
    """z as the original draws it: the global generator, one draw per tensor in order, in the weights' dtype."""

    version = "original"

    def __init__(self, seeds: Sequence[int]):
        self.seeds = seeds

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
        torch.manual_seed(self.seeds[step])
        for (_, p), scale, decay in zip(parameters, scales, decays, strict=True):
            z = torch.normal(0.0, 1.0, size=p.shape, dtype=p.dtype)
            p.copy_(p + scale * z - decay * p)
