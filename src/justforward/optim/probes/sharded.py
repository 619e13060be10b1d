"""The probe of weights that ranks share: a module at a time, in place, right before it is gathered."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


class ShardedProbe:
    """Theta + eps z in place, a module at a time: right before it is gathered, and back from a copy when it has run.

    Exact in every dtype; takes a second copy of the largest module's part only. `model` is sharded already.
    """

    name = "sharded"

    def __init__(self, model: nn.Module, parameters: Sequence[tuple[str, Tensor]]):
        self.model = model
        self.units = _units(model, {id(p): name for name, p in parameters})

    def losses(self, direction: Any, closure: Any, paired: Any = None) -> tuple[Any, Any]:
        """The losses at theta + eps z and theta - eps z."""
        return self._at(direction, 1.0, closure), self._at(direction, -1.0, closure)

    def plus(self, direction: Any, closure: Any) -> Any:
        """The loss at theta + eps z."""
        return self._at(direction, 1.0, closure)

    def _at(self, direction: Any, sign: float, closure: Any) -> Any:
        hooks = []
        backups: list[dict[str, Tensor]] = [{} for _ in self.units]
        try:
            for (module, names), backup in zip(self.units, backups, strict=True):
                part = direction.only(names)
                before = functools.partial(_perturb, part, sign, backup, module is not self.model)
                after = functools.partial(_restore, part, backup)
                hooks.append(module.register_forward_pre_hook(before, prepend=True))
                hooks.append(module.register_forward_hook(after, always_call=True))
            return closure()
        finally:
            for hook in hooks:
                hook.remove()
            for (_, names), backup in zip(self.units, backups, strict=True):
                _restore(direction.only(names), backup)


def _perturb(part: Any, sign: float, backup: dict[str, Tensor], inner: bool, module: nn.Module, *_: Any) -> None:
    if isinstance(module, FSDPModule):
        module.reshard()
    for name, p in part.parameters:
        backup[name] = _local(p).clone()
    part.add_(sign)
    if inner and isinstance(module, FSDPModule):
        # FSDP's own gathering, right after this, reads the weights on a stream that waits for nothing made here.
        module.unshard()


def _restore(part: Any, backup: dict[str, Tensor], *_: Any) -> None:
    for name, p in part.parameters:
        if name in backup:
            _local(p).copy_(backup.pop(name))


def _local(p: Tensor) -> Tensor:
    return (p.to_local() if isinstance(p, DTensor) else p).detach()


def _units(model: nn.Module, names: dict[int, str]) -> list[tuple[nn.Module, set[str]]]:
    """The modules to perturb at once, and what they are to perturb: what FSDP gathers at once, else a module's own."""
    units: list[tuple[nn.Module, set[str]]] = []
    sharded = {id(m) for m in model.modules() if isinstance(m, FSDPModule)}

    def collect(module: nn.Module, unit: set[str] | None) -> None:
        if id(module) in sharded or unit is None:
            unit = set()
            units.append((module, unit))
        unit |= {names[id(p)] for p in module.parameters(recurse=False) if id(p) in names}
        for child in module.children():
            collect(child, unit if sharded else None)

    collect(model, None)
    return [(module, cast(set[str], unit)) for module, unit in units if unit]
