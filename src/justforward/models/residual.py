"""The residual stream of a pre-norm decoder: h <- h + projection(x), block after block; then a norm, and the head.

What is found is what a forward pass calls, so that no family needs a list of names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from justforward.models.blocks import Blocks, find_blocks


@dataclass(frozen=True)
class Projection:
    """A layer whose output a block adds to the stream. name: of its weight, [width, inputs] (or [inputs, width])."""

    name: str
    block: int
    module: nn.Module

    @property
    def turned(self) -> bool:
        """Whether the weight is [inputs, width]."""
        return isinstance(self.module, Conv1D)


@dataclass(frozen=True)
class ResidualStream:
    """projections: of all blocks, in the order of their calls; norm: what stands between the stream and the head."""

    blocks: Blocks
    projections: tuple[Projection, ...]
    norm: nn.Module
    head: nn.Linear


@torch.no_grad()
def find_stream(model: Any) -> ResidualStream:
    """Watch a pass over two tokens. Raises ValueError, in one line, for a model that has no such stream."""
    blocks = find_blocks(model)
    kind = type(model).__name__
    names = {module: name for name, module in model.named_modules()}
    called = _called(model)
    head = model.get_output_embeddings()
    width = getattr(head, "in_features", None)
    last = max((i for i, m in enumerate(called) if blocks.number(names[m]) is not None), default=-1)
    above = [m for m in called[last + 1 :] if m is not head and any(True for _ in m.parameters())]
    if len(above) != 1 or width is None:
        raise ValueError(f"{kind} has {len(above)} layers between its last block and its head, and a guide needs one")
    found: dict[tuple[int, str], Projection] = {}
    for module in called:
        number = blocks.number(names[module])
        if number is not None and _width(module) == width:
            part = names[module].removeprefix(f"{blocks.name}.{number}.").split(".")[0]
            found[number, part] = Projection(f"{names[module]}.weight", number, module)
    for number in range(len(blocks)):
        if not any(one.block == number for one in found.values()):
            raise ValueError(f"block {number} of {kind} has no linear layer that adds to its stream, as a guide needs")
    order = {module: i for i, module in enumerate(called)}
    projections = sorted(found.values(), key=lambda one: order[one.module])
    stream = ResidualStream(blocks, tuple(projections), above[0], head)
    if (off := _off(model, stream)) > (0.02 if next(model.parameters()).dtype == torch.float32 else 0.2):
        raise ValueError(
            f"what {projections[-1].name} of {kind} adds does not reach the last norm as it is (off by {off:.1%}): a "
            "guide needs a plain residual stream"
        )
    return stream


def _off(model: Any, stream: ResidualStream) -> float:
    """How far what the last layer adds is from what arrives at the norm, but for a factor; as a share of it."""
    module, found = stream.projections[-1].module, []
    with inputs_seen([stream.norm], lambda _, x: found.append(x.float())):
        _pass(model)
    more = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(0)).to(found[0].device)
    more *= found[0].square().mean().sqrt()
    hook = module.register_forward_hook(
        lambda m, given, output: (output.float() + more.view_as(output)).to(output.dtype)
    )
    try:
        with inputs_seen([stream.norm], lambda _, x: found.append(x.float())):
            _pass(model)
    finally:
        hook.remove()
    arrived = found[1] - found[0]
    factor = (arrived * more).sum() / more.square().sum()
    return float((arrived - factor * more).norm() / arrived.norm()) if arrived.any() else 1.0


def _called(model: Any) -> list[nn.Module]:
    """The modules without parts that a pass calls, in the order of their calls."""
    called: list[nn.Module] = []
    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    hooks = [m.register_forward_pre_hook(lambda module, _: called.append(module)) for m in leaves]
    try:
        _pass(model)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _pass(model: Any) -> None:
    training = model.training
    model.eval()
    try:
        model(input_ids=torch.tensor([[1, 2]], device=next(model.parameters()).device), use_cache=False)
    finally:
        model.train(training)


def _width(module: nn.Module) -> int | None:
    """Outputs of a linear layer; None for another layer."""
    if isinstance(module, Conv1D):
        return module.nf
    return module.out_features if isinstance(module, nn.Linear) else None


@contextmanager
def inputs_seen(modules: Sequence[nn.Module], see: Any) -> Iterator[None]:
    """Tell `see(module, input)` of every call of some modules, for a while."""

    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        see(module, given[0])

    hooks = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
