"""Scores that are not numbers: told from those that are, and why a model gives them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class NotNumbersError(ValueError):
    """A model's scores say nothing."""


def is_choice(scores: Sequence[float]) -> bool:
    """Whether the highest of an example's scores means something.

    -inf is the logarithm of a probability of zero: an option may have it (a model may mask tokens that it never
    writes), but not all. NaN and +inf are no scores.
    """
    return all(score < math.inf for score in scores) and any(score > -math.inf for score in scores)


def likely_cause(model: nn.Module) -> str:
    """Why a model gives no numbers, as far as its weights tell, and what to do."""
    plain = [(name, p) for name, p in model.named_parameters() if type(p) is nn.Parameter and p.is_floating_point()]
    for name, parameter in plain:
        if bad := int((~parameter.isfinite()).sum()):
            holds = f"{bad} of {parameter.numel()} values of the weight {name} are"
            if parameter.dtype == torch.float16 and not parameter.isnan().any():
                return f"{holds} too large for float16: give --load_bfloat16 in place of --load_float16"
            return (
                f"{holds} NaN or infinite: the checkpoint is damaged, or its training diverged (give a lower "
                "--learning_rate)"
            )
    if any(parameter.dtype == torch.float16 for _, parameter in plain):
        return "float16 overflows on this model: give --load_bfloat16 in place of --load_float16"
    return "all weights are numbers, so the model overflows on the way: its weights are damaged or too large"


def diverged(model: nn.Module) -> bool:
    """Whether trained weights are no longer numbers; of weights that ranks share, this rank's parts."""
    parts = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters() if p.requires_grad)
    return not all(bool(p.isfinite().all()) for p in parts)


@contextmanager
def numbers_only(model: nn.Module) -> Iterator[None]:
    """Raise NotNumbersError where logits that are to be continued are NaN or +inf, while answers are generated."""
    # Generation calls the model inside PEFT's wrapper.
    base: Any = getattr(model, "get_base_model", lambda: model)()

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        logits: Tensor = output.logits[:, -1]
        bad = (logits.isnan() | (logits == math.inf)).any(-1)
        if bad.any():
            raise NotNumbersError(
                f"the next token's logits are not numbers in {int(bad.sum())} of {len(bad)} rows that are continued: "
                f"{likely_cause(model)}"
            )

    hook = base.register_forward_hook(look)
    try:
        yield
    finally:
        hook.remove()
