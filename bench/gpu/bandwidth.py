"""The noise kernel: bytes per second against a copy on the device."""

from __future__ import annotations

import itertools

import torch

from bench.common import compare
from bench.gpu.where import Where
from bench.noise import opt_125m_shapes
from justforward.noise import DISTRIBUTIONS, NoiseBackend, noise_key

KEY = noise_key(11, 5, 0, "model.layers.0.weight")
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
GOALS = {"rademacher": 0.8, "gaussian": 0.5}
"""Of the bandwidth of a copy; of 16-bit floats other than bf16, none."""
SCALE = 1e-3


def measure(where: Where) -> None:
    """What a run meets most, first."""
    noise = where.kernel()
    large(where, noise, DTYPES[0])
    many(where, noise)
    for dtype in DTYPES[1:]:
        large(where, noise, dtype)


def large(where: Where, noise: NoiseBackend, dtype: torch.dtype) -> None:
    """An update in place and a probe into scratch, over one large tensor: both read and write each weight once."""
    source = torch.zeros(where.pick(1 << 30, 1 << 12), dtype=dtype, device=where.device)
    out = torch.empty_like(source)
    rounding = "nearest" if dtype == torch.float32 else "stochastic"
    for distribution, name in itertools.product(DISTRIBUTIONS, ("update", "probe")):
        run = {
            "update": lambda d=distribution: noise.add_([source], [KEY], SCALE, 0.0, d, rounding=rounding),
            "probe": lambda d=distribution: noise.perturb(out, source, KEY, SCALE, 0, d),
        }[name]
        moved = 2 * source.numel() * source.element_size()
        line = compare(
            f"noise pass, {dtype}, {distribution}, {name}",
            {name: run, "copy": lambda: out.copy_(source)},
            device=where.device,
            goal=None if dtype == torch.float16 else f">= {GOALS[distribution]}",
            gigabytes=moved / 1e9,
            runs=where.pick(20, 2),
        )
        times: dict[str, float] = line["milliseconds"]  # type: ignore[assignment]
        print({one: f"{moved / max(ms, 1e-3) / 1e9:.2f} TB/s" for one, ms in times.items()}, flush=True)


def many(where: Where, noise: NoiseBackend) -> None:
    """An OPT-125m's 197 tensors in one call, where launches count, against as many additions."""
    shapes = where.pick(opt_125m_shapes(), [(16, 16), (16,)])
    tensors = [torch.zeros(shape, dtype=torch.bfloat16, device=where.device) for shape in shapes]
    others, keys = [torch.zeros_like(t) for t in tensors], [noise_key(0, 0, 0, str(i)) for i in range(len(tensors))]
    compare(
        f"noise pass, {len(tensors)} tensors, bf16, gaussian",
        {
            "update": lambda: noise.add_(tensors, keys, SCALE, rounding="stochastic"),
            "p.add_(q)": lambda: [p.add_(q) for p, q in zip(tensors, others, strict=True)],
        },
        device=where.device,
        runs=where.pick(20, 2),
    )
