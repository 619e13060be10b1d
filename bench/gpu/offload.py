"""`--zo_offload cpu`: weights in the host's pinned memory, a module's at a time on the device."""

from __future__ import annotations

import gc
import os
import time
from typing import Any

import torch

from bench.common import compare, report
from bench.gpu.where import GIB, Where
from bench.workload import Step, model_of, step_on
from justforward.noise import backend, noise_key
from justforward.optim.distribution.offload import Offload

ANCHOR = 6.2
"""GB on a GPU that others report for the 13B shape."""

LARGE = (("13b", 26.0, 120.0), ("6.7b", 13.4, 45.0))
"""Shapes with the GB of their weights and the seconds that they want of the part: to fill and pin them, which is some
2 s a GB, and for six steps, each of which takes them over the bus twice and updates them on the host."""

GRADIENTS = (0.5, -0.25, 0.125)


def measure(where: Where) -> None:
    """Bits on a small shape; memory and seconds on one that the seconds left allow."""
    began = time.perf_counter()
    for dtype in (torch.float32, torch.bfloat16):
        bits(where, where.pick("125m", "tiny"), dtype)
    gc.collect()
    left = where.seconds - (time.perf_counter() - began)
    size(where, where.pick(largest(left, free_gib()), "thin"))


def largest(seconds: float, gib: float) -> str:
    """The shape of which so much free memory holds the weights and their pinned copy, and which takes no longer."""
    fitting = (name for name, gb, least in LARGE if seconds >= least and gib > 2 * gb * 1e9 / GIB)
    return next(fitting, "1.3b")


def free_gib() -> float:
    """Memory of the host that is not in use."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / GIB


def offloaded(model: torch.nn.Module, where: Where, examples: int) -> Step:
    """A step of a model on the host that computes on the device."""
    Offload(model, where.device)
    return step_on(model, examples=examples, probe="just_in_time", device=where.device)


def bits(where: Where, shape: str, dtype: torch.dtype) -> None:
    """Updates of the same numbers make the same bits; losses differ by what the host's head rounds otherwise."""
    resident = step_on(model_of(shape, dtype).to(where.device), examples=4, probe="just_in_time")
    moved = offloaded(model_of(shape, dtype), where, 4)
    losses = []
    for made in (resident, moved):
        with torch.no_grad():
            losses.append(float(made.measure()))
        for name, p in model_of(shape, dtype).named_parameters():
            made.model.get_parameter(name).data.copy_(p.data)
        for gradient in GRADIENTS:
            made.mezo.apply_logged([gradient])
    others = dict(moved.model.named_parameters())
    same = all(torch.equal(p.cpu(), others[n].cpu()) for n, p in resident.model.named_parameters())
    report(
        f"offload: bits of three updates, OPT-{shape}, {dtype}",
        equal={"weights": same},
        goal="equal",
        loss_difference=abs(losses[0] - losses[1]),
        device=where.device,
    )


def on_the_host(shape: str) -> torch.nn.Module:
    """A model of bf16 noise: quicker than torch's own for 13 billion weights."""
    model: Any = model_of(shape, torch.bfloat16, "meta").to_empty(device="cpu")
    model.tie_weights()
    for name, p in model.named_parameters():
        backend("cpu").fill_(p, noise_key(0, 0, 0, name))
        p.data.mul_(0.02).add_(1.0 if p.dim() == 1 and name.endswith("weight") else 0.0)
    return model


def size(where: Where, shape: str) -> None:
    """What is on the device at most, and what a step takes beside its two forwards."""
    model = on_the_host(shape)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    made = offloaded(model, where, 16)
    peak = where.peak_mib(made.run) * 2**20
    report(
        f"offload: memory of the device, OPT-{shape}, bf16, 16 x 62 tokens",
        ratio={"GB": round(peak / 1e9, 3)},
        goal=f"<= {ANCHOR}" if shape == "13b" else None,
        gigabytes_of_weights=round(weights / 1e9, 3),
        device=where.device,
    )
    compare(
        f"offload: step / two forwards, OPT-{shape}, bf16, 16 x 62 tokens",
        {"two forwards": made.two_forwards, "step": made.run},
        runs=where.pick(3, 1),
        warmup=0,
        device=where.device,
        gigabytes_of_weights=round(weights / 1e9, 3),
    )
