"""The losses of several directions of a step: in as few passes as they take."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from justforward.optim.directions.base import Direction, Directions
from justforward.optim.probes.choose import Probe
from justforward.optim.probes.closures import Closure, Copies, Loss, Shares
from justforward.optim.probes.just_in_time import JustInTimeProbe


def one_sided(
    probe: Probe, directions: Sequence[Direction], closure: Closure, copies: Copies | None = None
) -> list[Loss]:
    """Plus, base, plus, base, ...: the loss at theta + eps z of each direction, and that at theta.

    Directions whose products are made of small parts share passes over copies of the batch, as many as one takes.
    """
    base, losses = closure(), list[Loss]()
    noise = directions[0].noise
    small = isinstance(noise, Directions) and noise.small_parts
    if small and copies is not None and copies.most > 1 and isinstance(probe, JustInTimeProbe):
        for first in range(0, len(directions), copies.most):
            some = directions[first : first + copies.most]
            plus = probe.together(some, 1.0, closure, copies) if len(some) > 1 else None
            if plus is None:
                break
            losses += plus
    losses += [probe.plus(direction, closure) for direction in directions[len(losses) :]]
    return [loss for plus in losses for loss in (plus, base)]


def divided(probe: Probe, directions: Sequence[Direction], shares: Shares | None) -> list[Loss]:
    """Plus, minus, plus, minus, ... of each direction's share of the batch, in two passes where the model takes it.

    Raises ValueError where there is not a share for each direction.
    """
    if shares is None or shares.count != len(directions):
        raise ValueError(f"split divides each batch among {len(directions)} directions: give estimate its shares")
    if isinstance(probe, JustInTimeProbe):
        plus = probe.shared(directions[0], 1.0, shares)
        minus = None if plus is None else probe.shared(directions[0], -1.0, shares)
        if plus is not None and minus is not None:
            return [loss for pair in zip(plus, minus, strict=True) for loss in pair]
    alone = (functools.partial(shares.alone, place) for place in range(len(directions)))
    return [loss for direction, share in zip(directions, alone, strict=True) for loss in probe.losses(direction, share)]
