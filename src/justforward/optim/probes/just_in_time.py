"""Probes that only read the weights: a module's perturbed weights are made right before it multiplies by them.

- `just_in_time`: in one scratch buffer that is used again and again. Exact in every dtype, and no second copy of the
  weights.
- `paired`: the same, and both signs at once, in one forward of a doubled batch, where the caller can double it and the
  model takes it.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn

from justforward.compat import full_precision
from justforward.optim.directions.base import Direction, NotDivisible, Owners
from justforward.optim.float32 import HALVES, InFloat32
from justforward.optim.probes.closures import EXACT, Closure, Copies, Loss, PairedClosure, Shares, close, tolerance
from justforward.optim.probes.modules import JustInTime, Reads
from justforward.optim.probes.moving import CopyProbe, pristine

logger = logging.getLogger(__name__)

VERIFIED = 8 << 20
"""So many bytes of weights are copied once, to hold a just-in-time probe to one in place."""


class JustInTimeProbe:
    """See the module. What no module call reaches, or something else reads as well, is copied and perturbed in place.

    Args:
        model: whose modules own the parameters.
        parameters: the trainable ones, by the names that seed their noise. A tied weight has one name.
        pairs: whether to probe in pairs where the caller can.
        copies: whether to copy, rather than perturb just in time, where it cannot: cheaper for small trainable sets.
    """

    name = "just_in_time"

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[tuple[str, Tensor]],
        *,
        pairs: bool = False,
        copies: bool = False,
    ):
        self.copies = copies
        self.modules = JustInTime(model, parameters)
        weights = [*model.parameters(), *(p for _, p in parameters)]
        self.halves, self.tolerance = any(p.dtype in HALVES for p in weights), tolerance([p for _, p in parameters])
        self.wide = False
        """Whether, for a while, nothing is rounded to 16 bits."""
        self.reached: set[str] | None = None
        """Parameters that are perturbed just in time; None until the first forward has been watched."""
        self.pairs: bool | None = None if pairs else False
        """Whether probing in pairs works; None until it has been tried."""
        self.divides: bool | None = None
        """Whether rows of a batch may have directions of their own; None until that has been tried."""

    def losses(self, direction: Direction, closure: Closure, paired: PairedClosure | None = None) -> tuple[Loss, Loss]:
        """The losses at theta + eps z and theta - eps z."""
        if self.copies and (paired is None or self.pairs is False):
            return CopyProbe().losses(direction, closure)
        if not self._apart(direction, closure).parameters and paired is not None:
            if self.pairs is None:
                self.pairs = self._can_pair(direction, closure, paired)
            if self.pairs:
                return self._pair(direction, paired)
        return self._side(direction, 1.0, closure), self._side(direction, -1.0, closure)

    def plus(self, direction: Direction, closure: Closure) -> Loss:
        """The loss at theta + eps z."""
        return CopyProbe().plus(direction, closure) if self.copies else self._side(direction, 1.0, closure)

    def shared(self, direction: Direction, sign: float, shares: Shares) -> Tensor | None:
        """[M] losses: of each direction's share of the batch at theta + sign eps z of that direction, in one pass.

        None where the model or the batch does not take it.
        """
        return self._divided([direction.of(sample) for sample in range(shares.count)], sign, shares)

    def together(self, directions: Sequence[Direction], sign: float, closure: Closure, copies: Copies) -> Tensor | None:
        """[M] losses of a batch at theta + sign eps z of M directions, in one pass over M copies of it; or None."""
        count = len(directions)
        shares = Shares(count, lambda _: closure(), lambda owners: copies.losses(count, owners))
        return self._divided(directions, sign, shares)

    def _divided(self, directions: Sequence[Direction], sign: float, shares: Shares) -> Tensor | None:
        if self.divides is False or shares.together is None:
            return None
        first, owners = directions[0], Owners([direction.sample for direction in directions])
        if self._apart(first, functools.partial(shares.alone, 0)).parameters:
            self.divides = False
            return None

        def together() -> Tensor:
            assert shares.together is not None
            with self.modules.perturbed(first.perturbation(sign, owners=owners, wide=self.wide)):
                return shares.together(owners)

        if self.divides is None:
            self.divides = self._can_divide(directions, sign, shares, together)
        return together() if self.divides else None

    def _can_divide(
        self, directions: Sequence[Direction], sign: float, shares: Shares, together: Callable[[], Tensor]
    ) -> bool:
        def measure() -> list[tuple[Loss, Loss]]:
            alone = (functools.partial(shares.alone, place) for place in range(len(directions)))
            return [
                (loss, self._at(direction, sign, share))
                for loss, direction, share in zip(together(), directions, alone, strict=True)
            ]

        return self._agree(measure, "directions are probed one by one")

    def _agree(self, measure: Callable[[], list[tuple[Loss, Loss]]], otherwise: str) -> bool:
        """Whether a short cut measures what the plain way does; else why not is told."""
        try:
            with self._settling():
                pairs, most = self._measured(measure)
        except (NotDivisible, RuntimeError, ValueError, TypeError, IndexError) as error:
            logger.info("%s: %s", otherwise, error)
            return False
        if all(close(short, plain, most) for short, plain in pairs):
            return True
        short, plain = max(pairs, key=lambda pair: abs(float(pair[0]) - float(pair[1])))
        logger.info("%s: %g in place of %g", otherwise, short, plain)
        return False

    def _settling(self) -> AbstractContextManager[None]:
        """Inside, nothing is recorded, for no step will compute it again."""
        return nullcontext() if self.modules.graphs is None else self.modules.graphs.used(False)

    def _measured(self, measure: Callable[[], list[tuple[Loss, Loss]]]) -> tuple[list[tuple[Loss, Loss]], float]:
        """The losses of two ways, and how far apart rounding may leave them.

        With 16-bit weights in float32, where that can be: in 16 bits one way may round as far from the other as a
        direction moves the loss.
        """
        if self.halves:
            self.wide = True
            try:
                with full_precision(), InFloat32():
                    return measure(), EXACT
            except NotDivisible:
                raise
            except Exception as error:  # such as kernels that know their own dtype only
                logger.debug("probes are not held to each other in float32: %s", error)
            finally:
                self.wide = False
                self.modules.scratch.buffers.clear()  # float32 ones would stay beside the weights' own
        return measure(), self.tolerance

    def _apart(self, direction: Direction, closure: Closure) -> Direction:
        """The part of a direction that cannot be made just in time, once the first forward has been watched."""
        if self.reached is None:
            with self._settling():
                self._watch(direction, closure)
                self._verify(direction, closure)
        assert self.reached is not None
        return direction.only({name for name, _ in direction.parameters} - self.reached)

    def _side(self, direction: Direction, sign: float, closure: Closure) -> Loss:
        rest = self._apart(direction, closure)
        if not rest.parameters:
            return self._at(direction, sign, closure)
        assert self.reached is not None
        with pristine([p for _, p in rest.parameters]):
            rest.add_(sign)
            return self._at(direction.only(self.reached), sign, closure)

    def _at(self, direction: Direction, sign: float, closure: Closure) -> Loss:
        with self.modules.perturbed(direction.perturbation(sign, wide=self.wide)):
            return closure()

    def _pair(self, direction: Direction, paired: PairedClosure) -> tuple[Loss, Loss]:
        with self.modules.perturbed(direction.perturbation(1.0, paired=True, wide=self.wide)):
            plus, minus = paired()
            return plus, minus

    def _watch(self, direction: Direction, closure: Closure) -> None:
        """Find what must not be perturbed just in time: what no call reaches, and what is read outside its module."""
        by = direction.perturbation(1.0)
        reads = by.watch = Reads(direction.parameters)
        with self.modules.perturbed(by), reads:
            closure()
        self.reached = by.reached - reads.names
        if read := sorted(by.reached & reads.names):
            logger.info("read outside their modules, so copied for each probe: %s", ", ".join(read))

    def _verify(self, direction: Direction, closure: Closure) -> None:
        """Hold the probe to one in place, on as many weights as are quickly copied; raise nothing, copy all instead."""
        assert self.reached is not None
        some, size = set[str](), 0
        for name, p in sorted(direction.parameters, key=lambda pair: pair[1].numel()):
            size += p.numel() * p.element_size()
            if name in self.reached and size <= VERIFIED:
                some.add(name)
        part = direction.only(some)
        if not some:
            return

        def measure() -> list[tuple[Loss, Loss]]:
            with pristine([p for _, p in part.parameters]):
                part.add_(1.0)
                expected = closure()
            return [(self._at(part, 1.0, closure), expected)]

        with _widened([p for _, p in part.parameters]) if self.halves else nullcontext():
            ((measured, expected),), most = self._measured(measure)
        if not close(measured, expected, most):
            logger.warning(
                "a just-in-time probe measures %g where one in place measures %g: weights are copied for each probe",
                measured, expected,
            )  # fmt: skip
            self.reached = set()

    def _can_pair(self, direction: Direction, closure: Closure, paired: PairedClosure) -> bool:
        """Whether a doubled batch measures what two forwards do."""

        def measure() -> list[tuple[Loss, Loss]]:
            alone = self._at(direction, 1.0, closure), self._at(direction, -1.0, closure)
            return list(zip(self._pair(direction, paired), alone, strict=True))

        return self._agree(measure, "no probes in pairs")


@contextmanager
def _widened(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Parameters in float32 for a while, in which directions are added to them without rounding."""
    originals = [p.data for p in parameters]
    try:
        for p in parameters:
            p.data = p.data.float()
        yield
    finally:
        for p, data in zip(parameters, originals, strict=True):
            p.data = data
