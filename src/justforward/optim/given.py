"""What MeZO is given: parameters by name, and numbers that make sense together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from justforward.noise import ROUNDINGS
from justforward.optim.rules.estimate import FEWEST, SHAPINGS

logger = logging.getLogger(__name__)


def named(group: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    """A parameter group's parameters with their names."""
    return list(zip(group["param_names"], group["params"], strict=True))


def trainable(params: Iterable[Any]) -> list[Any]:
    """Drop frozen parameters, and groups that are left empty (torch refuses both an empty group and no group)."""

    def keep(item: Any) -> bool:
        return (item[1] if isinstance(item, tuple) else item).requires_grad

    items = list(params)
    if items and isinstance(items[0], dict):
        groups = [{**group, "params": [p for p in group["params"] if keep(p)]} for group in items]
        found: list[Any] = [group for group in groups if group["params"]]
    else:
        found = [p for p in items if keep(p)]
    if not found:
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    return found


def check_numbers(*, lr: float, eps: float, weight_decay: float, rounding: str, clip: float | None = None) -> None:
    """Raise ValueError for what a step cannot be made with."""
    if not lr >= 0:
        raise ValueError(f"lr must be at least 0, got {lr}")
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding '{rounding}'; known: {', '.join(ROUNDINGS)}")


def check_probes(samples: int, sides: int, shaping: str, *, split: bool, direction_groups: int) -> None:
    """Raise ValueError for probes that do not go together; warn of those that say little."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if sides not in (1, 2):
        raise ValueError(f"sides must be 1 or 2, got {sides}")
    if shaping not in SHAPINGS:
        raise ValueError(f"unknown shaping '{shaping}'; known: {', '.join(SHAPINGS)}")
    if shaping == "deviation" and sides * samples < 2:
        raise ValueError("the deviation of one loss is nothing to divide by: give more samples, or two sides")
    if shaping == "zscore" and sides * samples < FEWEST:
        needed = -(-FEWEST // sides)
        logger.warning(
            "z-scores of %d losses hardly depend on what they are: give at least %d samples", sides * samples, needed
        )
    if split and (sides == 1 or direction_groups > 1):
        raise ValueError("split takes two sides, and one group of ranks")
    if not 1 <= direction_groups <= samples:
        raise ValueError(f"direction_groups must be from 1 to samples ({samples}), got {direction_groups}")
