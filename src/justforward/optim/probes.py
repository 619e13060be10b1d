"""How the loss at theta + eps z is evaluated, and theta is left as it was.

- `just_in_time`: a module's perturbed weights are made right before it multiplies by them, in one scratch buffer that
  is used again and again; theta is only read. Exact in every dtype, and no second copy of the weights.
- `copy`: theta is copied, perturbed in place and copied back. Exact; for small trainable sets (adapters).
- `in_place`: +eps, -2 eps, +eps, as Algorithm 1 of the paper writes it. Rounds at every pass: in 16 bits the weights
  drift (docs/precision.md). For weights that nothing else reaches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from justforward.noise import backend, noise_key
from justforward.optim.perturbation import CounterNoise, NoiseSource

logger = logging.getLogger(__name__)

Closure = Callable[[], "Tensor | float"]

SMALL = 64 << 20
"""Trainable sets of at most this many bytes are copied."""

CHUNK = 5 << 19
"""Elements of a weight that are perturbed at a time: 10 MB of float32 stay in cache until they are multiplied."""


@dataclass(frozen=True)
class Direction:
    """One z, scaled: theta + sign * eps * z for the named parameters; eps holds one number per parameter."""

    parameters: Sequence[tuple[str, Tensor]]
    eps: Sequence[float]
    noise: NoiseSource
    seed: int
    step: int
    sample: int

    def add_(self, sign: float) -> None:
        """Move all parameters, in place."""
        scales = [sign * eps for eps in self.eps]
        decays = [0.0] * len(scales)
        where = {"seed": self.seed, "step": self.step, "sample": self.sample}
        self.noise.add_(self.parameters, **where, scales=scales, decays=decays)

    def key(self, name: str) -> int:
        """The noise key of one parameter."""
        return noise_key(self.seed, self.step, self.sample, name)


class InPlaceProbe:
    """See the module."""

    name = "in_place"

    def losses(self, direction: Direction, closure: Closure) -> tuple[Tensor | float, Tensor | float]:
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


class CopyProbe:
    """See the module."""

    name = "copy"

    def losses(self, direction: Direction, closure: Closure) -> tuple[Tensor | float, Tensor | float]:
        """The losses at theta + eps z and theta - eps z."""
        with pristine([p for _, p in direction.parameters]) as restore:
            direction.add_(1.0)
            plus = closure()
            restore()
            direction.add_(-1.0)
            minus = closure()
        return plus, minus


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


class JustInTimeProbe:
    """See the module. Parameters whose owner is never called by the model are perturbed by `rest` instead.

    Args:
        model: whose modules own the parameters.
        parameters: the trainable ones, by the names that seed their noise. A tied weight has one name.
    """

    name = "just_in_time"

    def __init__(self, model: nn.Module, parameters: Sequence[tuple[str, Tensor]]):
        self.rest = CopyProbe()
        names = {id(p): name for name, p in parameters}
        self.owners: list[tuple[nn.Module, dict[str, str]]] = []
        for module in model.modules():
            own = {a: names[id(p)] for a, p in module.named_parameters(recurse=False) if id(p) in names}
            if own:
                self.owners.append((module, own))
        self.scratch = _Scratch()
        self.reached: set[str] | None = None  # None: no forward has been watched yet

    def losses(self, direction: Direction, closure: Closure) -> tuple[Tensor | float, Tensor | float]:
        """The losses at theta + eps z and theta - eps z."""
        if self.reached is None:
            self.reached = set()
            with self._perturbed(direction, 1.0, self.reached):
                closure()
        left = [i for i, (name, _) in enumerate(direction.parameters) if name not in self.reached]
        if left:
            rest = Direction(
                [direction.parameters[i] for i in left],
                [direction.eps[i] for i in left],
                *(direction.noise, direction.seed, direction.step, direction.sample),
            )
            with pristine([p for _, p in rest.parameters]) as restore:
                rest.add_(1.0)
                plus = self._at(direction, 1.0, closure)
                restore()
                rest.add_(-1.0)
                return plus, self._at(direction, -1.0, closure)
        return self._at(direction, 1.0, closure), self._at(direction, -1.0, closure)

    def _at(self, direction: Direction, sign: float, closure: Closure) -> Tensor | float:
        with self._perturbed(direction, sign, set()):
            return closure()

    @contextmanager
    def _perturbed(self, direction: Direction, sign: float, reached: set[str]) -> Iterator[None]:
        """Inside, every owner computes with theta + sign eps z; names of those that were called go to `reached`."""
        assert isinstance(direction.noise, CounterNoise)
        distribution = direction.noise.distribution
        scale = {name: sign * eps for (name, _), eps in zip(direction.parameters, direction.eps, strict=True)}
        undo: list[Callable[[], Any]] = []
        try:
            for module, own in self.owners:
                keys = {a: (direction.key(name), scale[name]) for a, name in own.items()}
                local = _Local(module, own, keys, distribution, self.scratch, reached)
                undo.append(local.install())
            yield
        finally:
            for action in undo:
                action()


class _Scratch:
    """Buffers for perturbed weights, one per nesting depth, as large as the largest use."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        self.depth = 0

    def take(self, like: Tensor, count: int, offset: int = 0) -> Tensor:
        """`count` elements of the buffer at the present depth, from `offset` on."""
        key = (self.depth, like.device, like.dtype)
        buffer = self.buffers.get(key)
        if buffer is None or buffer.numel() < offset + count:
            assert offset == 0 or buffer is None, "reserve the whole before taking parts"
            buffer = self.buffers[key] = torch.empty(offset + count, dtype=like.dtype, device=like.device)
        return buffer[offset : offset + count]


class _Local:
    """One module during one probe."""

    def __init__(
        self,
        module: nn.Module,
        own: dict[str, str],
        keys: dict[str, tuple[int, float]],
        distribution: str,
        scratch: _Scratch,
        reached: set[str],
    ):
        self.module, self.own, self.keys, self.distribution = module, own, keys, distribution
        self.scratch, self.reached = scratch, reached
        self.swapped: dict[str, Tensor] = {}

    def install(self) -> Callable[[], None]:
        """Make the module compute with perturbed weights; return what undoes it."""
        module = self.module
        forward = None
        if type(module) is nn.Linear and "weight" in self.own:
            forward = self._linear
        elif type(module) is nn.Embedding and module.max_norm is None:
            forward = self._embedding
        if forward is not None and "forward" not in vars(module):
            module.forward = forward  # type: ignore[method-assign]

            def restore() -> None:
                del module.forward

            return restore
        before = module.register_forward_pre_hook(lambda *_: self._swap_in())
        after = module.register_forward_hook(lambda *_: self._swap_out(), always_call=True)

        def remove() -> None:
            before.remove()
            after.remove()
            if self.swapped:  # another hook of the module raised before ours could run
                self._swap_out()

        return remove

    def _linear(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]: x W'^T + b', W' made in pieces of whole rows."""
        self.reached.update(self.own.values())
        module = self.module
        assert isinstance(module, nn.Linear)
        weight, bias = module.weight.detach(), module.bias
        if "bias" in self.own:
            moved = torch.empty_like(bias)
            self._perturb([moved], [bias.detach()], ["bias"])
            bias = moved
        rows, width = weight.shape
        step = max(1, CHUNK // width)
        if rows <= step:
            moved = self.scratch.take(weight, weight.numel()).view(rows, width)
            self._perturb([moved], [weight], ["weight"])
            return nn.functional.linear(x, moved, bias)
        out = torch.empty((*x.shape[:-1], rows), dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
        for first in range(0, rows, step):
            piece = weight[first : first + step]
            moved = self.scratch.take(piece, piece.numel()).view(piece.shape)
            self._perturb([moved], [piece], ["weight"], start=first * width)
            part = None if bias is None else bias[first : first + step]
            out[..., first : first + step] = nn.functional.linear(x, moved, part)
        return out

    def _embedding(self, ids: Tensor) -> Tensor:
        """Rows of W', made for the ids that are looked up."""
        self.reached.update(self.own.values())
        assert isinstance(self.module, nn.Embedding)
        weight = self.module.weight.detach()
        rows, inverse = torch.unique(ids, return_inverse=True)
        moved = torch.empty((len(rows), weight.shape[1]), dtype=weight.dtype, device=weight.device)
        key, scale = self.keys["weight"]
        backend(weight.device).perturb_rows(moved, weight, rows, key, scale, self.distribution)
        return nn.functional.embedding(inverse, moved)

    def _swap_in(self) -> None:
        self.reached.update(self.own.values())
        tensors = {a: getattr(self.module, a) for a in self.own}
        total = sum(t.numel() for t in tensors.values())
        first = next(iter(tensors.values()))
        same = all(t.dtype == first.dtype and t.device == first.device for t in tensors.values())
        if same:
            self.scratch.take(first, total)
        outs, offset = [], 0
        for t in tensors.values():
            flat = self.scratch.take(t, t.numel(), offset) if same else torch.empty(t.numel(), dtype=t.dtype)
            outs.append(flat.view(t.shape))
            offset += t.numel()
        originals = {a: t.data for a, t in tensors.items()}
        self._perturb(outs, list(originals.values()), list(tensors))
        for (a, t), out in zip(tensors.items(), outs, strict=True):
            self.swapped[a] = originals[a]
            t.data = out
        self.scratch.depth += 1

    def _swap_out(self) -> None:
        if self.swapped:
            for a, original in self.swapped.items():
                getattr(self.module, a).data = original
            self.swapped.clear()
            self.scratch.depth -= 1

    def _perturb(self, outs: list[Tensor], tensors: list[Tensor], attributes: list[str], start: int = 0) -> None:
        keys = [self.keys[a][0] for a in attributes]
        scales = [self.keys[a][1] for a in attributes]
        noise = backend(tensors[0].device)
        noise.perturb_many(outs, tensors, keys, scales, starts=start, distribution=self.distribution)


PROBES = ("auto", "just_in_time", "copy", "in_place")


def choose_probe(
    name: str, model: nn.Module | None, parameters: Sequence[tuple[str, Tensor]], noise: NoiseSource
) -> InPlaceProbe | CopyProbe | JustInTimeProbe:
    """The probe called `name`; "auto" takes the cheapest exact one that applies.

    Raises ValueError for an unknown name, and for "just_in_time" without the model or with noise of another kind.
    """
    if name not in PROBES:
        raise ValueError(f"unknown probe '{name}'; known: {', '.join(PROBES)}")
    possible = model is not None and isinstance(noise, CounterNoise) and all(p.is_contiguous() for _, p in parameters)
    if name == "auto":
        small = sum(p.numel() * p.element_size() for _, p in parameters) <= SMALL
        name = "copy" if small else "just_in_time" if possible else "in_place"
        if name == "in_place" and any(p.element_size() < 4 for _, p in parameters):
            logger.warning("16-bit weights are probed in place, which rounds them at every step: give MeZO the model")
    if name == "just_in_time":
        if not possible or model is None:
            raise ValueError("the probe 'just_in_time' needs the model, counter-based noise and contiguous weights")
        return JustInTimeProbe(model, parameters)
    return CopyProbe() if name == "copy" else InPlaceProbe()
