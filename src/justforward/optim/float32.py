"""Computes in float32 with weights of 16 bits: what a structure does wrong then stands out from rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

HALVES = (torch.float16, torch.bfloat16)


class InFloat32(TorchFunctionMode):
    """Widens 16-bit operands that stand beside float32 ones; what is looked up in an embedding is the first of these.

    Operations on weights alone keep their dtype: they round in the same way whatever is fed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A 16-bit dtype that is asked for means float32; a 16-bit tensor that is written to stays."""
        if func is not Tensor.view:  # which reads the same bits as another dtype
            args, kwargs = tree_map(_meant, (args, kwargs or {}))
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        mixed = any(tensor.dtype == torch.float32 for tensor in tensors)
        if mixed and func.__name__ != "__set__" and not (_writes(func) and tensors[0].dtype in HALVES):
            args, kwargs = tree_map(_widened, (args, kwargs))
        result = func(*args, **kwargs)
        return _widened(result) if func is functional.embedding else result


def _writes(func: Any) -> bool:
    """Whether a function changes its first argument: copy_, x += y, x[i] = y."""
    name = func.__name__
    return name.startswith("__i") or name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value


def _meant(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in HALVES else value
