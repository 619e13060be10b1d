"""Moments that are not kept but rebuilt at every step from the log: the last steps' seeds and projected gradients.

A window of h steps costs h draws of noise per step and no memory (AdaMeZO: arXiv 2605.00650). Weights beta^j are
divided by their sum over the window, which corrects for the truncation and for a window that has only begun. The
published code of AdaMeZO does neither: it multiplies by 100 instead, and makes plain steps until the window is full.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping

from torch import Tensor

from justforward.optim.rules.base import RULES, Rule, check_decay


class Rebuilt(Rule):
    """A rule of the last `window` estimates."""

    window: int

    def update(self, g: Tensor, kept: Mapping[str, Tensor], step: int) -> Tensor:
        """See Rule; `combine` is what is used."""
        return self.combine(iter([g]))

    @abstractmethod
    def combine(self, estimates: Iterator[Tensor]) -> Tensor:
        """The update from the estimates of at most `window` steps, the newest first, each asked for once."""


@RULES.register("rebuilt_momentum")
class RebuiltMomentum(Rebuilt):
    """Sum of beta1^j g_j, over the sum of the weights."""

    name = "rebuilt_momentum"

    def __init__(self, beta1: float = 0.8, window: int = 10):
        self.beta1, self.window = check_decay("beta1", beta1), check_window(window)

    def combine(self, estimates: Iterator[Tensor]) -> Tensor:
        """See Rebuilt."""
        m = next(estimates).clone()
        weight, total = self.beta1, 1.0
        for g in estimates:
            m.add_(g, alpha=weight)
            total, weight = total + weight, weight * self.beta1
        return m / total


@RULES.register("rebuilt_adam")
class RebuiltAdam(Rebuilt):
    """AdaMeZO: m / (sqrt(v) + eps), m and v as in Adam but over the window."""

    name = "rebuilt_adam"

    def __init__(self, beta1: float = 0.7, beta2: float = 0.9, eps: float = 1e-5, window: int = 10):
        self.beta1, self.beta2 = check_decay("beta1", beta1), check_decay("beta2", beta2)
        self.eps, self.window = eps, check_window(window)

    def combine(self, estimates: Iterator[Tensor]) -> Tensor:
        """See Rebuilt."""
        first = next(estimates)
        m, v = first.clone(), first.square()
        weights, totals = [self.beta1, self.beta2], [1.0, 1.0]
        for g in estimates:
            m.add_(g, alpha=weights[0])
            v.addcmul_(g, g, value=weights[1])
            totals = [total + weight for total, weight in zip(totals, weights, strict=True)]
            weights = [weights[0] * self.beta1, weights[1] * self.beta2]
        return (m / totals[0]).div_((v / totals[1]).sqrt_().add_(self.eps))


def check_window(window: int) -> int:
    """A number of steps. Raises ValueError for one below 1."""
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    return window
