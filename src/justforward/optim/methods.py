"""The methods by name: a combination of directions, sides, scale and rule, with the settings of its source.

Numbers alone, without torch: the command line reads its defaults here. docs/estimators.md says what each is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from justforward.registry import did_you_mean


@dataclass(frozen=True)
class Method:
    """What a name stands for. settings: of the directions and the rule, by argument."""

    source: str
    directions: str = "dense"
    distribution: str = "gaussian"
    samples: int = 1
    sides: int = 2
    split: bool = False
    shaping: str = "none"
    rule: str = "sgd"
    eps: float = 1e-3
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def forwards(self) -> int:
        """Forward passes over the batch per step."""
        if self.split:
            return 2
        return self.samples * 2 if self.sides == 2 else self.samples + 1


METHODS: dict[str, Method] = {
    "mezo": Method("Malladi et al. 2023, arXiv 2305.17333"),
    "mezo-momentum": Method("momentum, rebuilt from the log", rule="rebuilt_momentum",
                            settings={"beta1": 0.8, "window": 10}),
    "meazo": Method("arXiv 2605.03869", shaping="second_moment"),
    "fzoo": Method("arXiv 2506.09034", distribution="rademacher", samples=8, sides=1, shaping="deviation"),
    "lozo": Method("arXiv 2410.07698", directions="low_rank", settings={"rank": 2, "refresh": 50}),
    "lozo-m": Method("arXiv 2410.07698", directions="low_rank", rule="momentum",
                     settings={"rank": 2, "refresh": 50, "beta1": 0.9}),
    "subzero": Method("arXiv 2410.08989", directions="subspace", settings={"rank": 24, "refresh": 1000}),
    "subzero+": Method("arXiv 2608.15665", directions="subspace", samples=99, sides=1, rule="adam",
                       settings={"rank": 64, "refresh": 50, "matched": False, "beta1": 0.9, "beta2": 0.95}),
    "sparse-mezo": Method("arXiv 2402.15751", directions="sparse", settings={"sparsity": 0.75}),
    "zo-sign": Method("Liu et al. 2019, signSGD via zeroth-order oracle", rule="sign"),
    "zo-adam": Method("Chen et al. 2019, ZO-AdaMM", rule="adam", settings={"beta1": 0.9, "beta2": 0.999}),
    "adamezo": Method("arXiv 2605.00650", rule="rebuilt_adam", settings={"beta1": 0.7, "beta2": 0.9, "window": 10}),
    "eggroll": Method("arXiv 2511.16652", directions="outer", samples=16, split=True, shaping="spread",
                      settings={"rank": 1}),
    "grzo": Method("arXiv 2606.02857", directions="flipped", samples=16, split=True, shaping="spread"),
    "conmezo": Method("arXiv 2511.02757", directions="cone", settings={"angle": 1.35, "beta": 0.95}),
}  # fmt: skip


def get_method(name: str) -> Method:
    """The method called `name`. Raises ValueError, with the nearest known name, where there is none."""
    if name not in METHODS:
        known = sorted(METHODS)
        raise ValueError(f"unknown method '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}")
    return METHODS[name]
