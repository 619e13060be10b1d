"""Directions and rules from their names and settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from justforward.optim.directions.base import DIRECTIONS, Directions
from justforward.optim.rules.base import RULES, Rule


def build(
    directions: str = "dense",
    rule: str = "sgd",
    settings: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Directions, Rule]:
    """The directions and the rule of these names.

    settings: arguments of either, by name; for those that are None, or not there, `defaults` are taken where they fit,
    else the constructor's own. Raises ValueError for an unknown name, and for a setting that neither has.
    """
    left = {name: value for name, value in (settings or {}).items() if value is not None}
    made: list[Any] = []
    for found in (DIRECTIONS.get(directions), RULES.get(rule)):
        names = inspect.signature(found).parameters
        fitting = {name: value for name, value in (defaults or {}).items() if name in names}
        made.append(found(**{**fitting, **{name: left.pop(name) for name in names if name in left}}))
    if left:
        raise ValueError(f"--zo_{min(left)}: no setting of the directions '{directions}' or of the rule '{rule}'")
    return made[0], made[1]


def from_header(header: Mapping[str, Any], distribution: str) -> tuple[Directions, Rule]:
    """Those of a run, from the header of its log. distribution: of dense noise."""
    directions = dict(header.get("directions", {"name": "dense", "distribution": distribution}))
    rule = dict(header.get("rule", {"name": "sgd"}))
    return build(directions.pop("name"), rule.pop("name"), {**directions, **rule})
