"""How much each part of a direction is worth, from probes of the whole with random signs.

A probe along sum_b s_b D_b measures the slope sum_b s_b |D_b|^2 c_b, where c_b is the slope along D_b over its squared
norm: 1 where D_b is the gradient, 0 where it tells nothing. The c_b are fitted to all probes so far by least squares,
held to their mean by as much as one probe of each part alone would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from justforward.optim.factors import Factors


class Coefficients:
    """See the module. parts: the number of the part that each weight's direction belongs to, by name."""

    def __init__(self, parts: Mapping[str, int]):
        self.parts = dict(parts)
        self.numbers = sorted(set(self.parts.values()))

    def observed(self, factors: Mapping[str, Factors], signs: Mapping[int, float], slope: float) -> list[float]:
        """What a probe told: s_b |D_b|^2 of each part, and the slope; all over the squared norm of D."""
        squares = dict.fromkeys(self.numbers, 0.0)
        for name, one in factors.items():
            squares[self.parts[name]] += one.squared()
        total = sum(squares.values()) or 1.0
        return [*(signs[part] * squares[part] / total for part in self.numbers), slope / total]

    def fitted(self, told: Sequence[Sequence[float]]) -> dict[int, float]:
        """The c_b over the largest of them, none below 0; 1 for all before anything was told."""
        ones = dict.fromkeys(self.numbers, 1.0)
        if not told:
            return ones
        table = torch.tensor(told, dtype=torch.float64)
        shares, slopes = table[:, :-1], table[:, -1]
        size = shares.square().mean(0)
        mean = (shares * slopes[:, None]).sum() / shares.square().sum()
        normal = shares.T @ shares + torch.diag(size + 1e-12)
        found = torch.linalg.solve(normal, shares.T @ slopes + size * mean).clamp(min=0)
        if found.max() <= 0:
            return ones
        return dict(zip(self.numbers, (found / found.max()).tolist(), strict=True))
