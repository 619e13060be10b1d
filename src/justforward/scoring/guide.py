"""The guide: for each layer that adds to the residual stream, a direction that a forward pass knows.

A block adds W x to the stream, and the loss depends on the stream's end h through the final norm and the head alone. So
e[p] = dL/dh[p] is known at every scored position p, from what the pass computes anyway; and with the identity in place
of what later blocks make of a change,

    D = sum over p of e[p] x[p]^T

is the gradient of the last block's layer, and less and less of it below. No pass goes back through the model, and D is
never made: it is held as its two factors. The idea, what was measured of it and what is left: docs/guided.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from justforward.models.residual import Projection, ResidualStream
from justforward.optim.factors import Factors
from justforward.optim.scored_head import PIECE


@dataclass
class _Pass:
    """What one forward pass gave, of its K positions whose logits were read and its T scored tokens.

    stream: [K, width], what the final norm was given; inputs: [K, inputs] of each projection; source: int64 [T], the
    position of each token; target: int64 [T]; output: int64 [T], its place among the plan's; expected: [K, width], the
    head's rows weighted by the probabilities, or None where logits are not normalised.
    """

    stream: Tensor
    inputs: dict[nn.Module, Tensor]
    source: Tensor
    target: Tensor
    output: Tensor
    expected: Tensor | None


class Guide:
    """Watches the passes of an engine, and makes directions of what it saw.

    Args:
        stream: the model's.
        projections: the layers that are to be guided.
    """

    def __init__(self, stream: ResidualStream, projections: Sequence[Projection]):
        self.stream, self.projections = stream, tuple(projections)
        self.passes: list[_Pass] = []
        self._keep: Tensor | None = None
        self._seen: dict[nn.Module, Tensor] = {}

    @contextmanager
    def shifted(self, factors: Mapping[str, Factors], by: float) -> Iterator[None]:
        """The model at theta + by D for a while. Weights are left alone: layers add what D would to their outputs."""
        hooks = []
        for one in self.projections:
            if one.name in factors:
                hooks.append(one.module.register_forward_hook(_adding(factors[one.name], by)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def watched(self) -> list[nn.Module]:
        """The modules whose inputs are to be told to `see`."""
        return [self.stream.norm, *(one.module for one in self.projections)]

    def begin(self, keep: Tensor) -> None:
        """A pass begins; keep: bool [B, N], the positions whose logits are read."""
        self._keep, self._seen = keep, {}

    def see(self, module: nn.Module, x: Tensor) -> None:
        """What a module was given, [B, N, ...]."""
        assert self._keep is not None
        self._seen[module] = x.detach().reshape(*self._keep.shape, -1)[self._keep]

    def end(self, logits: Tensor, source: Tensor, target: Tensor, output: Tensor, *, normalise: bool) -> None:
        """A pass has ended; logits: [K, V] float32, of all tokens where they are normalised."""
        stream = self._seen.pop(self.stream.norm)
        expected = self._expected(logits) if normalise else None
        self.passes.append(_Pass(stream.float(), self._seen, source, target, output, expected))

    def _expected(self, logits: Tensor) -> Tensor:
        """[K, V] -> [K, width] float32: the head's rows weighted by the probabilities."""
        weight = self.stream.head.weight
        logs = logits - logits.logsumexp(-1, keepdim=True)
        if weight.dtype == torch.float32:
            return logs.exp_() @ weight
        total = torch.zeros(len(logits), weight.shape[1], device=logits.device)
        step = max(1, PIECE // weight.shape[1])
        for first in range(0, len(weight), step):
            total += logs[:, first : first + step].exp() @ weight[first : first + step].float()
        return total

    def take(self, slopes: Tensor) -> dict[str, Factors]:
        """The directions of the passes so far, by the names of weights; the guide starts anew.

        slopes: float32 [T], the derivative of the loss by each score, in the plan's order.
        """
        errors, passes = [self._errors(one, slopes) for one in self.passes], self.passes
        self.passes = []
        error = torch.cat(errors)
        moves = error.abs().sum(-1) > 0
        found = {}
        for one in self.projections:
            x = torch.cat([p.inputs[one.module] for p in passes])  # on the device of its layer
            found[one.name] = Factors(error[moves].to(x.device), x[moves.to(x.device)].float(), turned=one.turned)
        return found

    def _errors(self, one: _Pass, slopes: Tensor) -> Tensor:
        """[K, width] float32: the derivative of the loss by the stream's end."""
        slope = slopes[one.output.to(slopes.device)][:, None]
        rows = self.stream.head.weight[one.target].float()
        if one.expected is not None:
            rows = rows - one.expected[one.source]
        normed = torch.zeros_like(one.stream).index_add_(0, one.source, slope * rows)
        return _through(self.stream.norm, one.stream, normed)


def _adding(factors: Factors, by: float) -> Any:
    def hook(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (output.float() + by * factors.added(given[0])).to(output.dtype)

    return hook


def _through(norm: nn.Module, x: Tensor, error: Tensor) -> Tensor:
    """Error at a norm's output, [K, width] float32, carried to its input x."""
    wide = {name: p.detach().float() for name, p in norm.named_parameters()}
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(torch.func.functional_call(norm, wide, (x,)), x, error)
    return found


def check(guide: Guide, loss: float, last: Mapping[str, Factors], shifted: Callable[[float], float]) -> float:
    """Hold the last block's last layer, whose guide is its gradient, to a finite difference; returns their ratio.

    A family may multiply what a block adds, or its logits, by a number of its own: all directions are then so many
    times too short, which a measured length makes good. Raises ValueError, in one line, where the loss does not follow.

    Args:
        guide: which made the direction.
        loss: of the batch.
        last: the direction of that layer, by its name.
        shifted: the batch's loss at theta + h D.
    """
    ((name, whole),) = last.items()
    squared = whole.squared()
    if squared == 0:
        return 1.0
    wide = guide.stream.head.weight.dtype == torch.float32
    step = (0.01 if wide else 0.05) * abs(loss) / squared  # the share of the loss that it would change by
    ratio = (shifted(step) - shifted(-step)) / (2 * step * squared)
    if not ratio > 0:
        raise ValueError(
            f"--trainer guided: the loss does not follow what {name} adds (its slope is {ratio:.3g} of what it should "
            "be): use --trainer zo"
        )
    return ratio
