"""The kernels of one step and their shares of its time, to see what to mend."""

from __future__ import annotations

import torch
from torch.profiler import profile

from bench.common import report
from bench.gpu.where import Where
from bench.workload import TOKENS, model_of, step_on

LINES = 15


def measure(where: Where) -> None:
    """A step of all parameters, with few tokens and with many."""
    shape = where.pick("1.3b", "thin")
    model = model_of(shape, torch.bfloat16, where.device)
    for tokens in (TOKENS, where.pick(399, 99)):
        made = step_on(model, tokens=tokens)
        with profile(activities=where.activities()) as recorded:
            made.run()
        averages = recorded.key_averages()
        own = {one.key: where.own_time(one) for one in averages if where.is_kernel(one)}
        whole = sum(own.values()) or 1.0
        largest = sorted(own, key=lambda name: -own[name])[:LINES]
        calls = {one.key: one.count for one in averages if one.key in own}
        for name in largest:
            print(f"{own[name] / whole:7.1%}  {own[name] / 1e3:9.3f} ms  {calls[name]:6d} x  {name[:90]}", flush=True)
        report(
            f"kernels of a step: OPT-{shape}, bf16, 16 x {tokens + 1} tokens",
            share={name[:90]: round(own[name] / whole, 4) for name in largest},
            milliseconds=round(whole / 1e3, 3),
            launches=sum(calls.values()),
            device=where.device,
        )
