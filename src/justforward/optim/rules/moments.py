"""Rules that keep moments of the estimates, in float32, for each coordinate."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from justforward.optim.rules.base import RULES, Rule, check_decay


@RULES.register("momentum")
class Momentum(Rule):
    """m <- beta1 m + (1 - beta1) g; the update is m (LOZO-M's form)."""

    name = "momentum"
    slots = ("m",)

    def __init__(self, beta1: float = 0.9):
        self.beta1 = check_decay("beta1", beta1)

    def update(self, g: Tensor, kept: Mapping[str, Tensor], step: int) -> Tensor:
        """See Rule."""
        return kept["m"].mul_(self.beta1).add_(g, alpha=1 - self.beta1).clone()


@RULES.register("adam")
class Adam(Rule):
    """Adam (Kingma and Ba 2015): m / (sqrt(v) + eps), both corrected for their start at zero."""

    name = "adam"
    slots = ("m", "v")

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        self.beta1, self.beta2, self.eps = check_decay("beta1", beta1), check_decay("beta2", beta2), eps

    def update(self, g: Tensor, kept: Mapping[str, Tensor], step: int) -> Tensor:
        """See Rule."""
        m = kept["m"].mul_(self.beta1).add_(g, alpha=1 - self.beta1)
        v = kept["v"].mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        root = (v / (1 - self.beta2 ** (step + 1))).sqrt_().add_(self.eps)
        return (m / (1 - self.beta1 ** (step + 1))).div_(root)
