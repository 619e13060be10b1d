"""The positions of a batch whose logits are read, in the form in which any version of transformers takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on a device, without waiting for what a GPU still does: a plain copy would."""
    if tensor.device.type != "cpu" or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Kept(Tensor):
    """A bool mask [B, N] by which a tensor [B, N, ...] is indexed without asking the device how many are kept.

    Models take it as `logits_to_keep`. They index hidden states by it as x[kept], and before transformers 5.21 as
    x[:, kept, :], which then stands for the same: [K, width], K positions in row-major order. What else is computed
    of it is an ordinary tensor.
    """

    index: Tensor
    """int64 [K], of the flattened mask, where the mask is."""

    @classmethod
    def of(cls, mask: Tensor, device: torch.device | str = "cpu", copies: int = 1, count: int = 0) -> Kept:
        """The positions of a mask that is on the host, for a device and so many copies of the batch.

        count: the last position of a copy is read again until there are as many.
        """
        index = mask.flatten().nonzero().flatten()
        index = torch.cat([index, index[-1:].expand(max(0, count - len(index)))])
        every = (index + mask.numel() * torch.arange(copies)[:, None]).flatten()
        return cls.made(sent(mask.repeat(copies, 1), device), sent(every, device))

    @classmethod
    def made(cls, mask: Tensor, index: Tensor) -> Kept:
        """Of its parts."""
        kept = mask.as_subclass(cls)
        kept.index = index
        return kept

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.__getitem__ and not isinstance(args[0], cls):
                found = _chosen(args[1])
                return args[0].flatten(0, 1).index_select(0, found.index.to(args[0].device))
            result = func(*args, **(kwargs or {}))
            if func is Tensor.to and type(result) is Tensor:  # a model that is spread moves what it is given
                return cls.made(result, args[0].index.to(result.device))
        return result


def _chosen(key: Any) -> Kept:
    parts = key if isinstance(key, tuple) else (key,)
    (found,) = (part for part in parts if isinstance(part, Kept))
    assert all(part is found or part == slice(None) for part in parts)
    return found
