"""A forward pass whose rows have directions of their own, members of one step: what a module computes for them.

The product with the weights is made once, for all rows; what a direction adds is a product of its parts. Weights are
only read, and no copy of them is perturbed but of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from justforward.optim.directions.base import NotDivisible, Owners
from justforward.optim.scored_head import ScoredLinear, float32_linear

if TYPE_CHECKING:
    from justforward.optim.probes.modules import Installed

Compute = Callable[..., Any]


def compute(own: Installed, alone: Compute, *args: Any, **kwargs: Any) -> Any:
    """The module's output, each row's at its own direction; `alone` computes it at the one of `own.by`."""
    module, owners = own.module, own.by.owners
    assert owners is not None
    own.by.reached.update(own.used.values())
    if isinstance(module, nn.Linear) and alone == own.linear:
        chosen = isinstance(module, ScoredLinear) and module.wanted is not None
        with own.by.perturbing():
            result = None if chosen else _linear(own, module, owners, *args)
    elif isinstance(module, nn.Embedding):
        with own.by.perturbing():
            result = _embedding(own, module, alone, owners, args, kwargs)
    elif all(getattr(module, a).dim() == 1 for a in own.used):
        result = _vectors(own, module, alone, owners, args, kwargs)
    else:
        result = None
    return _one_by_one(own, alone, owners, args, kwargs) if result is None else result


def _linear(own: Installed, module: nn.Linear, owners: Owners, x: Tensor) -> Tensor | None:
    """[N, ..., in] -> [N, ..., out]: x W^T + b' + s x z^T."""
    by, name = own.by, own.used.get("weight")
    moved = "bias" in own.used
    bias = None if moved or module.bias is None else module.bias.detach()
    weight = module.weight.detach()
    product = float32_linear if isinstance(module, ScoredLinear) else nn.functional.linear
    out, (owner, sequences) = product(x, weight, bias), owners.by_sequence(x)
    by_sequence = out.view(*sequences.shape[:-1], -1)
    if moved:
        by_sequence.add_(_vector(own, "bias", owner, sequences))
    if name is not None:
        places = [by.place._replace(sample=sample) for sample in owners.present]
        if not by.directions.add_products(by_sequence, sequences, (name, weight), places, owner, by.scales[name]):
            return None
    return out


def _embedding(
    own: Installed, module: nn.Embedding, alone: Compute, owners: Owners, args: Any, kwargs: Any
) -> Tensor | None:
    """Rows that are looked up, each sequence's in its own table; a subclass may make the ids that it looks up.

    Held once per type of module to what the rows give one by one.
    """
    own_class = type(module)
    if own.spreads.get(own_class) is False or module.max_norm is not None:
        return None
    lookup = _Lookup(own, module, owners)
    try:
        assert own.original is not None
        with lookup:
            result = own.original(*args, **kwargs)
    except NotDivisible:
        return None
    if own_class not in own.spreads:
        expected = _one_by_one(own, alone, owners, args, kwargs)
        rtol, atol = 2 * torch.finfo(expected.dtype).eps, 0.01 * abs(own.by.scales[own.used["weight"]])
        own.spreads[own_class] = lookup.done and torch.allclose(result, expected, rtol=rtol, atol=atol)
    return result if own.spreads[own_class] and lookup.done else None


class _Lookup(TorchFunctionMode):
    """Inside, `nn.functional.embedding` of a module's weight is that of each sequence's own table."""

    def __init__(self, own: Installed, module: nn.Embedding, owners: Owners):
        super().__init__()
        self.own, self.module, self.owners, self.done = own, module, owners, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not nn.functional.embedding or args[1] is not self.module.weight:
            return result
        by, name = self.own.by, self.own.used["weight"]
        places = [by.place._replace(sample=sample) for sample in self.owners.present]
        owner, moved = self.owners.of(args[0]), result.float()
        weight = (name, self.module.weight.detach())
        sequences, ids = moved.view(len(moved), -1, moved.shape[-1]), args[0].reshape(len(moved), -1)
        self.done = by.directions.add_rows(sequences, ids, weight, places, owner, by.scales[name])
        return moved.to(result.dtype)


def _vectors(
    own: Installed, module: nn.Module, alone: Compute, owners: Owners, args: Any, kwargs: Any
) -> Tensor | None:
    """A module of vectors, such as a norm: its own forward, with vectors that differ from row to row.

    Held once per type of module to what the rows give one by one.
    """
    own_class = type(module)
    if own.spreads.get(own_class) is False or len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        return None
    if own_class is nn.LayerNorm:
        return _layer_norm(own, module, owners, args[0])
    vectors = {a: _vector(own, a, owners.of(args[0]), args[0]) for a in own.used}
    tensors = {a: getattr(module, a) for a in vectors}
    originals = {a: t.data for a, t in tensors.items()}
    try:
        for a, t in tensors.items():
            t.data = vectors[a]
        assert own.original is not None
        result = own.original(*args)
    except RuntimeError:
        own.spreads[own_class] = False
        return None
    finally:
        for a, t in tensors.items():
            t.data = originals[a]
    if own_class not in own.spreads:
        expected = _one_by_one(own, alone, owners, args, kwargs)
        own.spreads[own_class] = isinstance(result, Tensor) and torch.equal(result, expected)
    return result if own.spreads[own_class] else None


def _layer_norm(own: Installed, module: Any, owners: Owners, x: Tensor) -> Tensor:
    """`nn.LayerNorm`, whose kernel takes one vector for all rows."""
    owner, sequences = owners.by_sequence(x)
    normed = nn.functional.layer_norm(sequences, module.normalized_shape, None, None, module.eps)
    for attribute, combine in (("weight", normed.mul_), ("bias", normed.add_)):
        vector = _vector(own, attribute, owner, sequences) if attribute in own.used else getattr(module, attribute)
        if vector is not None:
            combine(vector)
    return normed.view(x.shape)


def _vector(own: Installed, attribute: str, owner: Tensor, x: Tensor) -> Tensor:
    """A trained vector of each entry of x [N, ..., width]: [N, 1, ..., width]. owner: int64 [N], of the directions."""
    stack, owners = own.by.stacks[own.used[attribute]], own.by.owners
    assert owners is not None
    values = stack[owners.places.to(owner.device)[owner]]
    return values.view(len(x), *[1] * (x.dim() - 2), -1)


def _one_by_one(own: Installed, alone: Compute, owners: Owners, args: Any, kwargs: Any) -> Any:
    """Each direction's rows by themselves, and their outputs in the order of the batch."""
    leaves, spec = tree_flatten((args, kwargs))
    by, results = own.by, []
    try:
        for place, sample in enumerate(owners.present):
            chosen = [_rows(leaf, owners, place) for leaf in leaves]
            some_args, some_kwargs = tree_unflatten(chosen, spec)
            own.by = by.alone(sample)
            results.append(alone(*some_args, **some_kwargs))
    finally:
        own.by = by
    return tree_map(lambda *parts: _in_order(parts, owners), *results)


def _rows(value: Any, owners: Owners, place: int) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0 or len(value) == 1:
        return value
    return value[owners.of(value) == place]


def _in_order(parts: Sequence[Any], owners: Owners) -> Any:
    if not isinstance(parts[0], Tensor):
        if all(part is None for part in parts):
            return None
        raise NotDivisible(f"a module returned {type(parts[0]).__name__}")
    joined = torch.cat(list(parts))
    return joined[owners.of(joined).argsort(stable=True).argsort()]
