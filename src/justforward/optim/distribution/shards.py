"""Parameters that ranks share (FSDP2, tensor parallelism): each rank holds a part, and draws that part's own z.

Gathered, the weights are those of a run that is not sharded, to the bit.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from justforward.optim.distribution.ranks import Ranks


def is_sharded(model: nn.Module) -> bool:
    """Whether ranks share the model: all of them must then call it equally often."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def pieces(p: Tensor) -> list[tuple[Tensor, int]]:
    """What this rank holds of a parameter: runs of neighbouring elements, each with the number of its first."""
    if not isinstance(p, DTensor):
        return [(p, 0)]
    local, sizes = p.to_local(), p.shape
    shape, offset = compute_local_shape_and_global_offset(sizes, p.device_mesh, p.placements)
    if local.numel() == 0:
        return []
    strides = [math.prod(sizes[d + 1 :]) for d in range(len(sizes))]
    # A run ends where a dimension of which this rank holds a part does.
    cut = max((d for d in range(len(sizes)) if shape[d] != sizes[d]), default=0)
    run = math.prod(shape[cut:])
    starts = [
        sum(o * s for o, s in zip(index, strides, strict=False)) + offset[cut] * strides[cut]
        for index in itertools.product(*(range(offset[d], offset[d] + shape[d]) for d in range(cut)))
    ]
    rows = local.detach().view(-1, run)  # a view: these are written to
    return list(zip(rows, starts, strict=True))


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread the model over all ranks, a decoder layer at a time (FSDP2); its weights must be equal on all."""
    mesh = init_device_mesh(device.type, (Ranks.current().size,))
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # The root too: weights that stay gathered would not see the next probe.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
