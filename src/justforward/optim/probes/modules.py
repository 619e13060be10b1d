"""Perturbed weights made right before a module multiplies by them, in scratch that is used again and again.

The weights themselves are only read, so a probe leaves every bit of them, in every dtype, without a second copy.

A probe may be *paired*: the closure then evaluates a doubled batch in one forward, whose first half sees theta + eps z
and whose second half theta - eps z. Both come from one draw, so a step draws z twice instead of three times.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from justforward.optim.directions.base import NotDivisible, Perturbation, add_low_rank, piece, whole_rows
from justforward.optim.probes import members
from justforward.optim.probes.graphs import Graphs
from justforward.optim.scored_head import ScoredLinear, float32_linear

logger = logging.getLogger(__name__)

AT_ONCE = {"cuda"}
"""Types of device on which a pair's two products are one: a launch less, and no copies into halves."""

BOTH = 6
"""The use of the scratch for the weights of a pair that are multiplied at once."""

FEW = 1 << 16
"""Weights of at most so many elements (norms, biases) are perturbed all at once, before the forward begins: a launch of
their own would cost more than their noise."""


class JustInTime:
    """The modules of a model that own trainable parameters.

    Args:
        model: whose modules own the parameters.
        parameters: the trainable ones. A tied weight has one name.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[tuple[str, Tensor]]):
        self.scratch = Scratch()
        self.graphs: Graphs | None = None
        self.few = {name: p for name, p in parameters if p.numel() <= FEW}
        trained = sum(p.numel() for _, p in parameters)
        names = {id(p): name for name, p in parameters}
        self.modules: list[Installed] = []
        spreads: dict[type, bool] = {}
        for module in model.modules():
            own = {a: names[id(p)] for a, p in module.named_parameters(recurse=False) if id(p) in names}
            if own:
                self.modules.append(Installed(module, own, self.scratch, spreads, trained))

    @contextmanager
    def perturbed(self, by: Perturbation) -> Iterator[None]:
        """Inside, modules compute with perturbed weights: those of the parameters that `by` has keys for.

        Unless paired, parameters of few elements have perturbed copies in their place throughout.
        """
        few = {name: p for name, p in self.few.items() if name in by.scales}
        by.moved = self._moved(few, by)
        originals = {name: p.data for name, p in few.items()}
        installed: list[Installed] = []
        try:
            if not (by.paired or by.owners):
                by.reached.update(few)
                for name, p in few.items():
                    p.data = by.moved[0][name]
            for module in self.modules:
                if module.install(by):
                    installed.append(module)
            with nullcontext() if self.graphs is None else self.graphs.at(by, self.scratch.buffers):
                yield
        finally:
            for module in reversed(installed):
                module.remove()
            for name, p in few.items():
                p.data = originals[name]

    def _moved(
        self, few: dict[str, Tensor], by: Perturbation
    ) -> list[dict[str, Tensor]] | dict[int, dict[str, Tensor]]:
        """Copies of parameters of few elements, for each sign; of vectors, where rows have directions of their own."""
        if by.owners is None:
            by.stacks = moved_copies(self.scratch, few, by)
            return _each_sign(by.stacks, by)
        vectors = [(name, by.read(p)) for name, p in by.wholes.items() if p.dim() == 1]
        numbers, by.moved, by.stacks = by.owners.numbers, {}, {}
        for device, dtype in {(p.device, p.dtype) for _, p in vectors}:
            here = [(name, p) for name, p in vectors if (p.device, p.dtype) == (device, dtype)]
            sizes = [p.numel() for _, p in here]
            flat = self.scratch.take(here[0][1], len(numbers) * sum(sizes), -1).view(len(numbers), -1)
            by.stacks |= {name: part for (name, _), part in zip(here, flat.split(sizes, dim=1), strict=True)}
            tensors, scales = [p for _, p in here], [by.scales[name] for name, _ in here]
            for place, number in enumerate(numbers):
                outs = [by.stacks[name][place] for name, _ in here]
                by.directions.perturb_many(outs, tensors, here, by.place._replace(sample=number), scales)
        for place, number in enumerate(numbers):
            by.moved[number] = {name: stack[place] for name, stack in by.stacks.items()}
        return by.moved


def moved_copies(
    scratch: Scratch, tensors: dict[str, Tensor], by: Perturbation, *, first: int = 0, use: int = 0
) -> dict[str, Tensor]:
    """In scratch, theta + eps z of the named tensors and, paired, theta - eps z too: by name [1 or 2, *shape].

    first: the number of their first row, where they are pieces of parameters; use: which buffers of the scratch.
    """
    signs, tensors = 2 if by.paired else 1, {name: by.read(t) for name, t in tensors.items()}
    kinds: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, t in tensors.items():
        kinds.setdefault((t.device, t.dtype), []).append(name)
    stacks: dict[str, Tensor] = {}
    for names in kinds.values():
        sizes = [tensors[name].numel() for name in names]
        flat = scratch.take(tensors[names[0]], signs * sum(sizes), use).view(signs, -1)
        for name, part in zip(names, flat.split(sizes, dim=1), strict=True):
            stacks[name] = part if tensors[name].dim() == 1 else part.view(signs, *tensors[name].shape)
    for device in {t.device for t in tensors.values()}:
        here = [name for name, t in tensors.items() if t.device == device]
        outs, *mirrors = zip(*(stacks[name].unbind() for name in here), strict=True)
        by.directions.perturb_many(
            outs,
            [tensors[n] for n in here],
            [(n, by.wholes[n]) for n in here],
            by.place,
            [by.scales[n] for n in here],
            first,
            mirrors=mirrors[0] if by.paired else None,
        )
    return {name: stacks[name] for name in tensors}


def _each_sign(stacks: dict[str, Tensor], by: Perturbation) -> list[dict[str, Tensor]]:
    halves = [stack.unbind() for stack in stacks.values()]
    return [dict(zip(stacks, column, strict=True)) for column in zip(*halves, strict=True)] or [{}] * (1 + by.paired)


class Scratch:
    """Buffers for perturbed weights, one per use and nesting depth, as large as the largest need."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}
        self.depth = 0

    def take(self, like: Tensor, count: int, use: int = 0) -> Tensor:
        """`count` elements, of no particular value, of the dtype and on the device of a tensor."""
        key = (use, self.depth, like.device, like.dtype)
        buffer = self.buffers.get(key)
        if buffer is None or buffer.numel() < count:
            buffer = self.buffers[key] = like.detach().new_empty(count)
        return buffer[:count]


class Installed:
    """One module, and how it computes while it is installed."""

    by: Perturbation

    def __init__(
        self, module: nn.Module, own: dict[str, str], scratch: Scratch, spreads: dict[type, bool], trained: int
    ):
        self.module, self.own, self.scratch, self.spreads, self.trained = module, own, scratch, spreads, trained
        self.used: dict[str, str] = {}
        self.original: Callable[..., Any] | None = None
        self.hooked = "forward" in vars(module)

    def install(self, by: Perturbation) -> bool:
        """Make the module compute with perturbed weights, where it has any that are not in place already."""
        self.used = {a: name for a, name in self.own.items() if name in by.scales}
        one = not by.paired and by.owners is None
        if not self.used or (one and all(name in by.moved[0] for name in self.used.values())):
            return False
        self.by, module = by, self.module
        self.hooked = "forward" in vars(module)
        self.original = module.forward
        weight = self.used.get("weight")
        if not self.hooked and type(module) in (nn.Linear, ScoredLinear) and weight is not None:
            compute: Callable[..., Any] = self.linear
        elif not self.hooked and type(module) is nn.Embedding and module.max_norm is None:
            compute = self.embedding
        else:
            compute = self.swapped
        if by.owners is not None:
            compute = functools.partial(members.compute, self, compute)
        module.forward = compute  # type: ignore[method-assign]
        return True

    def remove(self) -> None:
        """Leave the module as it was."""
        if self.hooked:
            self.module.forward = self.original  # type: ignore[method-assign, assignment]
        else:
            del self.module.forward
        self.original = None

    def linear(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]: x W'^T + b', W' made in pieces of whole rows."""
        self.by.reached.update(self.used.values())
        with self.by.perturbing():
            return self._linear(x)

    def _linear(self, x: Tensor) -> Tensor:
        module = self.module
        assert isinstance(module, nn.Linear)
        scored = isinstance(module, ScoredLinear)
        if isinstance(module, ScoredLinear) and module.wanted is not None:
            return self._wanted(x, module, module.wanted)
        factors = self.by.directions.factors(self.used["weight"], module.weight, self.by.place)
        if factors is not None:
            return self._low_rank(x, module, *factors)
        halves, weight = self._halves(x), module.weight.detach()
        rows, width = weight.shape
        dtype = torch.float32 if scored else torch.promote_types(x.dtype, weight.dtype)
        trained = self.trained if self.by.directions.draws_in_place else None
        step = whole_rows(piece(x.device.type, trained) // len(halves), width, x.device.type)
        own = self.used["weight"] not in self.by.moved[0]
        if own and rows <= step and len(halves) == 2 and x.device.type in AT_ONCE and x.dtype == weight.dtype == dtype:
            return self._both(x, module)
        if rows <= step and len(halves) == 1:
            (pair,) = self._moved({"weight": weight, "bias": module.bias})
            return (float32_linear if scored else nn.functional.linear)(x, pair["weight"], pair["bias"])
        biases = self._moved({"bias": module.bias}, use=4)
        out = torch.empty((*x.shape[:-1], rows), dtype=dtype, device=x.device)
        for first in range(0, rows, step):
            pieces = self._moved({"weight": weight[first : first + step]}, first=first)
            for half, moved, bias, to in zip(halves, pieces, biases, out.chunk(len(halves)), strict=True):
                b = None if bias["bias"] is None else bias["bias"][first : first + step]
                product = float32_linear if scored else nn.functional.linear
                to[..., first : first + step] = product(half, moved["weight"], b)
        return out

    def _both(self, x: Tensor, module: nn.Linear) -> Tensor:
        """[2 B, ..., in] -> [2 B, ..., out]: both halves of a paired batch in one product of both perturbed weights."""
        name, by, (rows, width) = self.used["weight"], self.by, module.weight.shape
        moved = self.scratch.take(module.weight, 2 * rows * width, BOTH).view(2, rows, width)
        wholes = [(name, by.wholes[name])]
        by.directions.perturb_many(
            [moved[0]], [module.weight.detach()], wholes, by.place, [by.scales[name]], mirrors=[moved[1]]
        )
        given = x.reshape(2, -1, width)
        if module.bias is None:
            out = torch.bmm(given, moved.mT)
        else:
            out = torch.baddbmm(self._both_biases(module.bias)[:, None], given, moved.mT)
        return out.view(*x.shape[:-1], rows)

    def _both_biases(self, bias: Tensor) -> Tensor:
        """[2, out]: of each sign, on the device of the bias."""
        stack = self.by.stacks.get(self.used.get("bias", ""))
        if stack is None:
            return torch.stack([moved["bias"] for moved in self._moved({"bias": bias}, use=4)])
        return stack.to(bias.device)

    def _low_rank(self, x: Tensor, module: nn.Linear, a: Tensor, b: Tensor) -> Tensor:
        """[..., in] -> [..., out]: x W^T + s (x B) A^T + b', W as it is and both signs from one product of it.

        a: [out, r] and b: [in, r], float32.
        """
        product = float32_linear if isinstance(module, ScoredLinear) else nn.functional.linear
        out = product(x, module.weight.detach())
        biases, scale = self._moved({"bias": module.bias}, use=4), self.by.scales[self.used["weight"]]
        for part, to, bias, sign in zip(self._halves(x), self._halves(out), biases, (1.0, -1.0), strict=False):
            if bias["bias"] is not None:
                to.add_(bias["bias"])
            flat_to, flat = to.view(1, -1, to.shape[-1]), part.reshape(1, -1, part.shape[-1])
            add_low_rank(flat_to, flat, a[None], b[None], sign * scale)
        return out

    def _wanted(self, x: Tensor, module: ScoredLinear, wanted: Tensor) -> Tensor:
        """[..., in] -> [..., U]: only the outputs that are wanted, in float32."""
        halves, weight = self._halves(x), module.weight.detach()
        moved = self._moved_rows(weight, wanted)
        biases = [b["bias"] for b in self._moved({"bias": module.bias})]
        chosen = [None if b is None else b[wanted] for b in biases]
        return torch.cat([float32_linear(h, w, b) for h, w, b in zip(halves, moved, chosen, strict=True)])

    def embedding(self, ids: Tensor) -> Tensor:
        """Rows of W', made as they are looked up: to find repeated ids, a GPU would have to be waited for."""
        self.by.reached.update(self.used.values())
        with self.by.perturbing():
            return self._embedding(ids)

    def _embedding(self, ids: Tensor) -> Tensor:
        assert isinstance(self.module, nn.Embedding)
        weight, half = self.module.weight.detach(), self._halves(ids)[0].numel()
        moved = self._moved_rows(weight, ids.reshape(-1))
        looked_up = torch.cat([moved[0][:half], moved[1][half:]]) if self.by.paired else moved[0]
        return looked_up.view(*ids.shape, -1)

    def swapped(self, *args: Any, **kwargs: Any) -> Any:
        """Any module: its own forward, with perturbed weights in place of its own."""
        self.by.reached.update(self.used.values())
        assert self.original is not None
        given = [(args, kwargs)]
        if self.by.paired and len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
            given = [((half,), kwargs) for half in self._halves(args[0])]  # norms, which are many
        elif self.by.paired:
            given = [
                tree_map(lambda v, i=i: self._halves(v)[i] if isinstance(v, Tensor) else v, given[0]) for i in (0, 1)
            ]
        tensors = {a: getattr(self.module, a) for a in self.used}
        originals = {a: t.data for a, t in tensors.items()}
        results = []
        with self.by.perturbing():
            moved = self._moved(originals)
        self.scratch.depth += 1
        try:
            for weights, (some_args, some_kwargs) in zip(moved, given, strict=True):
                for a, t in tensors.items():
                    t.data = weights[a]
                results.append(self.original(*some_args, **some_kwargs))
        finally:
            self.scratch.depth -= 1
            for a, t in tensors.items():
                t.data = originals[a]
        return results[0] if len(results) == 1 else _joined(*results)

    def _halves(self, x: Tensor) -> Sequence[Tensor]:
        if not self.by.paired:
            return (x,)
        if x.dim() == 0 or x.shape[0] % 2:
            raise NotDivisible(f"{type(self.module).__name__} was given {tuple(x.shape)}, which has no two halves")
        return x.chunk(2)

    def _moved(self, tensors: dict[str, Any], *, first: int = 0, use: int = 2) -> list[dict[str, Any]]:
        """The attributes given at theta + eps z and, paired, at theta - eps z; what is not trained stays as it is."""
        result: list[dict[str, Any]] = [dict(tensors) for _ in range(2 if self.by.paired else 1)]
        fresh: dict[str, Tensor] = {}
        for a, name in self.used.items():
            if a not in tensors or tensors[a] is None:
                continue
            if name in self.by.moved[0]:
                for sign, values in enumerate(result):  # an offloaded module's other weights are elsewhere
                    values[a] = self.by.moved[sign][name].to(tensors[a].device)
            else:
                fresh[name] = tensors[a]
        if fresh:
            copies = moved_copies(self.scratch, fresh, self.by, first=first, use=use)
            for sign, values in enumerate(result):
                values |= {a: copies[name][sign] for a, name in self.used.items() if name in copies}
        return result

    def _moved_rows(self, weight: Tensor, rows: Tensor) -> list[Tensor]:
        """Rows of a matrix, [U, in], at theta + eps z and, paired, at theta - eps z."""
        name, by = self.used["weight"], self.by
        if by.wide:
            z, chosen = by.directions.values(name, weight, by.place, rows) * by.scales[name], weight[rows].float()
            return [chosen + z, chosen - z] if by.paired else [chosen + z]
        moved = [weight.new_empty((len(rows), weight.shape[1])) for _ in range(2 if by.paired else 1)]
        mirror = moved[1] if by.paired else None
        by.directions.perturb_rows(moved[0], (name, weight), rows, by.place, by.scales[name], mirror=mirror)
        return moved


def _joined(first: Any, second: Any) -> Any:
    """The outputs of two halves of a batch as those of the whole."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    if type(first) in (tuple, list):
        return type(first)(_joined(a, b) for a, b in zip(first, second, strict=True))
    if first is None:
        return None
    raise NotDivisible(f"a module returned {type(first).__name__}, which has no two halves")


class Reads(TorchDispatchMode):
    """Notes which of the given tensors any operation reads inside, but those that perturb them.

    During a probe nothing else may read a weight itself: whatever does would see theta unperturbed.
    """

    def __init__(self, parameters: Sequence[tuple[str, Tensor]]):
        super().__init__()
        self.watched = {p.untyped_storage().data_ptr(): name for name, p in parameters}
        self.names: set[str] = set()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (self.paused or func.is_view):
            for value in tree_leaves((args, kwargs)):
                if type(value) in (Tensor, nn.Parameter):
                    name = self.watched.get(value.untyped_storage().data_ptr())
                    if name is not None:
                        self.names.add(name)
        return func(*args, **(kwargs or {}))
