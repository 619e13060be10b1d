"""Weights that stay on the host, or in a file, while a device computes: for models that are larger than the device.

A module's weights are copied to the device right before it runs and freed when it has run, the next module's meanwhile.
A probe perturbs the copies on the device; updates are made on the host, at once, so that whoever reads theta there
finds it up to date. Embeddings are looked up on the host, and only their rows are copied.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from justforward.optim.scored_head import ScoredLinear

ALIGNED = 64
"""Bytes to whose multiples a parameter's place in the file is rounded."""


def to_file(model: nn.Module, folder: str | Path) -> int:
    """Keep the parameters in a file mapped into memory, whose pages the system may write out; its size in bytes.

    The file has no name: it is gone when the process is. Raises ValueError where the folder cannot hold it.
    """
    parameters = list(model.parameters())
    places, size = [], 0
    for p in parameters:
        places.append(size)
        size += -(-p.numel() * p.element_size() // ALIGNED) * ALIGNED
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".weights-") as file:
            file.truncate(size)
            storage = torch.UntypedStorage.from_file(file.name, shared=True, nbytes=size)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"--zo_offload disk: {folder} cannot hold {size / 1e9:.1f} GB of weights: {error}") from error
    for p, at in zip(parameters, places, strict=True):
        own: Any = torch.empty(0, dtype=p.dtype)
        moved = own.set_(storage, at // p.element_size(), p.shape)
        p.data = moved.copy_(p.data)
    return size


class Offload:
    """Makes a model on the host compute on `device`.

    Args:
        model: on the host; its parameters stay there, its buffers move to the device.
        device: where to compute. "cpu" copies all the same, which emulates a device.
        pinned: copy the parameters to pinned memory, for a GPU. False leaves them where they are, as in a mapped file.
    """

    def __init__(self, model: nn.Module, device: torch.device | str, *, pinned: bool = True):
        self.device = torch.device(device)
        self.following: dict[nn.Module, nn.Module] = {}
        self.fetched: dict[nn.Module, tuple[dict[str, Tensor], Any]] = {}
        self.resident: dict[nn.Module, dict[str, Tensor]] = {}
        self.last: nn.Module | None = None
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self.stream is not None and pinned:
            for p in model.parameters():
                p.data = p.data.pin_memory()
        for _, buffer in model.named_buffers():
            buffer.data = buffer.data.to(self.device)
        # An adapter's model may be called without its wrapper, and be generated from.
        for root in {model, getattr(model, "get_base_model", lambda: model)()}:
            root.register_forward_pre_hook(self._begin, prepend=True)
            root.register_forward_hook(self._begin, always_call=True)
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
                module.register_forward_hook(self._leave, always_call=True)

    def _begin(self, *_: Any) -> None:
        """Forget what was fetched, at both ends of a forward: between two of them weights change."""
        if self.stream is not None:
            self.stream.synchronize()  # and none changes while it is still being copied
        self.fetched.clear()
        self.last = None

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if _stays(module):
            if isinstance(module, ScoredLinear) and module.wanted is not None:
                module.wanted = module.wanted.cpu()
            return tree_map(lambda v: v.cpu() if isinstance(v, Tensor) else v, (args, kwargs))
        if self.last is not None:
            self.following[self.last] = module
        self.last = module
        weights, event = self.fetched.pop(module, None) or self._fetch(module)
        if event is not None:
            event.wait()
        self.resident[module] = {a: p.data for a, p in module.named_parameters(recurse=False)}
        for a, p in module.named_parameters(recurse=False):
            p.data = weights[a]
        after = self.following.get(module)
        if after is not None and self.stream is not None and after not in self.fetched:
            self.fetched[after] = self._fetch(after)
        return None

    def _leave(self, module: nn.Module, _: Any, output: Any) -> Any:
        if _stays(module):
            return tree_map(lambda v: v.to(self.device) if isinstance(v, Tensor) else v, output)
        for a, host in self.resident.pop(module, {}).items():
            getattr(module, a).data = host
        return None

    def _fetch(self, module: nn.Module) -> tuple[dict[str, Tensor], Any]:
        """Copies of a module's weights on the device, and the event after which they are there."""
        # Not a use of the weights: whoever watches for uses does not see it.
        with _disable_current_modes(), torch.no_grad():
            own = list(module.named_parameters(recurse=False))
            if self.stream is None:
                return {a: p.data.to(self.device, copy=True) for a, p in own}, None
            with torch.cuda.stream(self.stream):
                weights = {a: p.data.to(self.device, non_blocking=True) for a, p in own}
                event = torch.cuda.Event()
                event.record(self.stream)
            for weight in weights.values():
                weight.record_stream(torch.cuda.current_stream(self.device))
            return weights, event


def _stays(module: nn.Module) -> bool:
    """Whether so little of the module's weights is used that it computes on the host."""
    return type(module) is nn.Embedding or (isinstance(module, ScoredLinear) and module.wanted is not None)
