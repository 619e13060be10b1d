"""What a rule is: from an estimate of the gradient to the direction that is descended along.

A rule works on the coordinates in which a direction is drawn: the weights themselves for dense noise, a small matrix
for a direction of low rank. It is elementwise, so that any piece of the coordinates can be done by itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from justforward.registry import Registry

RULES: Registry[type[Rule]] = Registry("rule", package="justforward.optim.rules")


class Rule(ABC):
    """theta <- theta - lr (update + weight_decay theta), the update made of this and earlier steps' estimates g."""

    slots: ClassVar[tuple[str, ...]] = ()
    """Names of what is kept for each coordinate, in float32."""

    window = 1
    """How many steps' estimates it is made of, where it rebuilds them."""
    name: ClassVar[str]

    @abstractmethod
    def update(self, g: Tensor, kept: Mapping[str, Tensor], step: int) -> Tensor:
        """The update for an estimate g (float32; may be overwritten); `kept` are its slots, `step` counts from 0."""

    def describe(self) -> dict[str, Any]:
        """Its settings, as JSON values for the header of a log."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def check_decay(name: str, value: float) -> float:
    """A decay rate of a moment, in [0, 1). Raises ValueError for another number."""
    if not (math.isfinite(value) and 0 <= value < 1):
        raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
    return value
