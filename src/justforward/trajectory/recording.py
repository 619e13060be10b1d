"""A training run as a trajectory log: what pins it, and how a model is rebuilt from it.

`justforward.optim.log` is the file format; here are the header's parts that need a model or a schedule.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from justforward.compat import installed_version
from justforward.noise import ROUNDING_VERSION
from justforward.optim import MeZO
from justforward.optim.distribution.shards import pieces
from justforward.optim.given import named
from justforward.optim.guided import Guided
from justforward.optim.log import is_skipped

UNPREDICTABLE = ("reduce_lr_on_plateau", "greedy")
"""Schedules that depend on what evaluation finds: a log cannot tell their learning rates."""


def describe_schedule(args: TrainingArguments, total_steps: int) -> dict[str, Any]:
    """The learning rate of every step, as what `transformers.get_scheduler` takes."""
    name = getattr(args.lr_scheduler_type, "value", str(args.lr_scheduler_type))
    kwargs = args.lr_scheduler_kwargs if isinstance(args.lr_scheduler_kwargs, dict) else {}
    return {
        "name": name,
        "lr": args.learning_rate,
        "warmup_steps": args.get_warmup_steps(total_steps),
        "total_steps": total_steps,
        "kwargs": kwargs,
    }


def describe_run(
    mezo: MeZO, schedule: Mapping[str, Any], base: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The header of a run's log.

    Args:
        mezo: the optimiser.
        schedule: of its learning rate (see describe_schedule).
        base: fingerprint of the weights before the first step.
        facts: what else the caller knows: the base model's name, how it is loaded and tuned, the job.
    """
    return {
        "format": 1,
        "version": installed_version("justforward") or "not installed",
        "base": base,
        "schedule": dict(schedule),
        **mezo.describe(),
        **(facts or {}),
    }


def describe_steps(
    guided: Guided, schedule: Mapping[str, Any], base: str, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The same for guided steps, whose directions take the rows: `facts` must tell these too."""
    pairs = [(i, pair) for i, group in enumerate(guided.param_groups) for pair in named(group)]
    return {
        "format": 1,
        "kind": "guided",
        "version": installed_version("justforward") or "not installed",
        "base": base,
        "schedule": dict(schedule),
        "samples": guided.record_size,
        "seed": guided.seed,
        "rounding": f"{guided.rounding} {ROUNDING_VERSION}",
        "groups": [{"weight_decay": group["weight_decay"]} for group in guided.param_groups],
        "parameters": [[n, list(p.shape), str(p.dtype).removeprefix("torch."), i] for i, (n, p) in pairs],
        **(facts or {}),
    }


def restore(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the parameters of the same names."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            for piece, start in pieces(parameters[name]):
                piece.copy_(value.flatten()[start : start + piece.numel()].view_as(piece))


def count_skipped(steps: Iterable[tuple[float, ...]]) -> int:
    """Steps that applied nothing because a loss was not finite."""
    return sum(is_skipped(values) for values in steps)


def set_schedule(scheduler: Any, optimizer: torch.optim.Optimizer, step: int, rate: float) -> None:
    """Put a learning-rate scheduler where it would be after `step` steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = scheduler.state_dict()
        scheduler.load_state_dict(
            {**state, "last_epoch": step, "_step_count": step + 1, "_last_lr": [rate] * len(optimizer.param_groups)}
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
