"""A language-model head that computes only the outputs that are wanted, in float32 whatever its weights are.

    install(model.get_output_embeddings())

Logits in 16 bits are worth 0.03 at a magnitude of 10, as much as the difference of MeZO's two losses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

PIECE = 5 << 19
"""Elements of a 16-bit weight that are widened at a time: 10 MB of float32 stay in cache until they are multiplied."""


class ScoredLinear(nn.Linear):
    """`nn.Linear` whose output is float32 when no gradient is wanted; with `wanted`, [U] indices, only those outputs.

    With gradients on it is `nn.Linear` itself: [..., in] -> [..., out], or [..., U] of `wanted`.
    """

    wanted: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], or [..., U] where outputs are chosen."""
        weight, bias = self.weight, self.bias
        if self.wanted is not None:
            weight, bias = weight[self.wanted], None if bias is None else bias[self.wanted]
        return linear(x, weight, bias) if torch.is_grad_enabled() else float32_linear(x, weight, bias)


def install(module: nn.Module | None) -> ScoredLinear | None:
    """Make an ordinary `nn.Linear` a `ScoredLinear`, in place; None for whatever else it may be.

    The module keeps its identity, weights and name. Quantised weights and hooked forwards are left as they are.
    """
    if type(module) is nn.Linear and type(module.weight) is nn.Parameter and "forward" not in vars(module):
        module.__class__ = ScoredLinear
    return module if isinstance(module, ScoredLinear) else None


def float32_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Product x W^T + b, [..., in] -> [..., out], accumulated and returned in float32."""
    if weight.dtype == torch.float32:
        return linear(x.float(), weight, bias)
    rows, width = weight.shape
    flat = x.reshape(-1, width)
    if weight.is_cuda and flat.dtype == weight.dtype:
        out = torch.mm(flat, weight.T, out_dtype=torch.float32)
    else:
        out = torch.empty((len(flat), rows), dtype=torch.float32, device=x.device)
        flat, step = flat.float(), max(1, PIECE // width)
        for first in range(0, rows, step):
            out[:, first : first + step] = flat @ weight[first : first + step].float().T
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], rows)
