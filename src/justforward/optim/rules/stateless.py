"""Rules that keep nothing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from justforward.optim.rules.base import RULES, Rule


@RULES.register("sgd")
class SGD(Rule):
    """The estimate itself (MeZO, Algorithm 1)."""

    name = "sgd"

    def update(self, g: Tensor, kept: Mapping[str, Tensor], step: int) -> Tensor:
        """See Rule."""
        return g


@RULES.register("sign")
class Sign(Rule):
    """The estimate's signs (ZO-signSGD: Liu et al. 2019)."""

    name = "sign"

    def update(self, g: Tensor, kept: Mapping[str, Tensor], step: int) -> Tensor:
        """See Rule."""
        return g.sign_()
