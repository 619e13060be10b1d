"""Probes that move the weights themselves, and put them back.

- `copy`: theta is copied, perturbed in place and copied back. Exact; for small trainable sets (adapters).
- `in_place`: +eps, -2 eps, +eps, as Algorithm 1 of the paper writes it. Rounds at every pass: in 16 bits the weights
  drift (docs/precision.md). For weights that nothing else reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from justforward.optim.directions.base import Direction
from justforward.optim.probes.closures import Closure, Loss, PairedClosure


class InPlaceProbe:
    """See the module."""

    name = "in_place"

    def losses(self, direction: Direction, closure: Closure, paired: PairedClosure | None = None) -> tuple[Loss, Loss]:
        """The losses at theta + eps z and theta - eps z."""
        offset = 0.0
        try:
            direction.add_(1.0)
            offset = 1.0
            plus = closure()
            direction.add_(-2.0)
            offset = -1.0
            minus = closure()
        finally:
            if offset:
                direction.add_(-offset)
        return plus, minus

    def plus(self, direction: Direction, closure: Closure) -> Loss:
        """The loss at theta + eps z."""
        direction.add_(1.0)
        try:
            return closure()
        finally:
            direction.add_(-1.0)


class CopyProbe:
    """See the module."""

    name = "copy"

    def losses(self, direction: Direction, closure: Closure, paired: PairedClosure | None = None) -> tuple[Loss, Loss]:
        """The losses at theta + eps z and theta - eps z."""
        with pristine([p for _, p in direction.parameters]) as restore:
            direction.add_(1.0)
            plus = closure()
            restore()
            direction.add_(-1.0)
            minus = closure()
        return plus, minus

    def plus(self, direction: Direction, closure: Closure) -> Loss:
        """The loss at theta + eps z."""
        with pristine([p for _, p in direction.parameters]):
            direction.add_(1.0)
            return closure()


@contextmanager
def pristine(tensors: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Copy tensors; give back a function that restores them, which also runs at the end, come what may."""
    copies = [t.detach().clone() for t in tensors]

    def restore() -> None:
        for tensor, copied in zip(tensors, copies, strict=True):
            tensor.copy_(copied)

    try:
        yield restore
    finally:
        restore()
