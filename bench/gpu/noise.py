"""The noise kernel: the bits of the reference, and bytes per second against a copy on the device."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import itertools
import multiprocessing
import os
from collections.abc import Callable

import numpy as np
import torch

from bench.common import compare, report
from bench.gpu.where import Where
from bench.noise import opt_125m_shapes
from justforward.noise import DISTRIBUTIONS, ROUNDINGS, NoiseBackend, backend, noise_key, reference

KEY = noise_key(11, 5, 0, "model.layers.0.weight")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
STARTS = (0, 191, 2**33 + 77)
GOALS = {"rademacher": 0.8, "gaussian": 0.5}
"""Of the bandwidth of a copy; of 16-bit floats other than bf16, none."""
SCALE, DECAY = 1e-3, 0.01


def measure(where: Where) -> None:
    """See the module."""
    bits(where)
    noise = kernel(where)
    bandwidth(where, noise)
    many(where, noise)


@functools.cache
def kernel(where: Where) -> NoiseBackend:
    """The backend of the device; in a rehearsal Triton's, which TRITON_INTERPRET runs, where it is installed."""
    if not where.rehearsal:
        return backend(where.device)
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed: the CPU's noise stands in for its kernel", flush=True)
        return backend("cpu")
    return importlib.import_module("justforward.noise.triton").TritonNoise("cpu")


def bits(where: Where) -> None:
    """Everything that the kernel is compiled for, against the reference or what the tests hold to it.

    In several processes: most of it is compilation.
    """
    sizes = where.pick((1, 65, 257, 8192, 100_003), (1, 257, 8192))
    kinds = {
        drawn: (DISTRIBUTIONS, sizes, STARTS),
        added: (DTYPES, DISTRIBUTIONS, ROUNDINGS, sizes, STARTS),
        perturbed: (DTYPES, DISTRIBUTIONS, sizes, STARTS),
        in_rows: (DTYPES, DISTRIBUTIONS, (1, 255, 768, 770)),
    }
    cases = {same: list(itertools.product(*kind)) for same, kind in kinds.items()}
    todo = [(where, same, case) for same, kind in cases.items() for case in kind]
    with multiprocessing.get_context("spawn").Pool(where.pick(min(12, os.cpu_count() or 1), 1)) as pool:
        found = iter(pool.starmap(_found, todo, chunksize=len(cases)))
    for same, kind in cases.items():
        right = list(itertools.islice(found, len(kind)))
        wrong = [str(case) for case, one in zip(kind, right, strict=True) if not one]
        name, facts = same.__name__, {"cases": len(kind), "wrong": wrong[:5]}
        report(f"noise bits: {name}", equal={name: all(right)}, goal="equal", device=where.device, **facts)


def _found(where: Where, same: Callable[..., bool], case: tuple) -> bool:
    return same(kernel(where), *case)


def drawn(noise: NoiseBackend, distribution: str, size: int, start: int) -> bool:
    """What is drawn, against the definition."""
    out = torch.empty(size, device=noise.device)
    noise.fill_(out, KEY, start, distribution)
    expected = {"gaussian": reference.gaussian, "rademacher": reference.rademacher}[distribution](KEY, start, size)
    return np.array_equal(out.cpu().numpy(), expected)


def weights(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Of every magnitude from fp16's subnormals to 1."""
    chance = torch.Generator().manual_seed(size)
    magnitudes = (torch.rand(size, generator=chance) * 27 - 27).exp2()
    return (torch.randn(size, generator=chance) * magnitudes).to(dtype)


def added(noise: NoiseBackend, dtype: torch.dtype, distribution: str, rounding: str, size: int, start: int) -> bool:
    """Two updates, with what compensated rounding keeps."""
    after = []
    for one in (noise, backend("cpu")):
        weight = weights(size, dtype).to(one.device)
        kept = torch.zeros(size, dtype=torch.int16, device=one.device) if rounding == "compensated" else None
        kept = kept if dtype != torch.float32 else None
        extra = {"residuals": [kept]} if rounding == "compensated" else {}
        for step in range(2):
            one.add_([weight], [KEY + step], SCALE, DECAY, distribution, starts=start, rounding=rounding, **extra)
        after.append((weight.cpu(), torch.zeros(0) if kept is None else kept.cpu()))
    return all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def perturbed(noise: NoiseBackend, dtype: torch.dtype, distribution: str, size: int, start: int) -> bool:
    """Both signs of a probe."""
    after = []
    for one in (noise, backend("cpu")):
        weight = weights(size, dtype).to(one.device)
        outs = [torch.empty_like(weight) for _ in range(2)]
        one.perturb_many([outs[0]], [weight], [KEY], SCALE, start, distribution, mirrors=[outs[1]])
        after.append([out.cpu() for out in outs])
    return all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def in_rows(noise: NoiseBackend, dtype: torch.dtype, distribution: str, width: int) -> bool:
    """Rows of a table, as an embedding looks them up."""
    after = []
    for one in (noise, backend("cpu")):
        table, rows = weights(50 * width, dtype).view(50, width).to(one.device), torch.tensor([49, 0, 7, 8])
        out = torch.empty(4, width, dtype=dtype, device=one.device)
        one.perturb_rows(out, table, rows.to(one.device), KEY, SCALE, distribution)
        after.append(out.cpu())
    return torch.equal(*after)


def bandwidth(where: Where, noise: NoiseBackend) -> None:
    """An update in place and a probe into scratch, over one large tensor: both read and write each weight once."""
    elements = where.pick(1 << 30, 1 << 12)
    for dtype, distribution in itertools.product(DTYPES, DISTRIBUTIONS):
        source = torch.zeros(elements, dtype=dtype, device=where.device)
        out = torch.empty_like(source)
        rounding = "nearest" if dtype == torch.float32 else "stochastic"
        contenders = {
            "update": lambda w=source, d=distribution, r=rounding: noise.add_([w], [KEY], SCALE, 0.0, d, rounding=r),
            "probe": lambda w=source, o=out, d=distribution: noise.perturb(o, w, KEY, SCALE, 0, d),
            "copy": lambda w=source, o=out: o.copy_(w),
        }
        moved = 2 * source.numel() * source.element_size()
        faster(where, f"noise pass, {dtype}, {distribution}", contenders, moved, dtype, distribution)


def faster(where: Where, figure: str, contenders: dict, moved: int, dtype: torch.dtype, distribution: str) -> None:
    """The kernel's bandwidth over that of a copy: `share`, with its goal."""
    for name in ("update", "probe"):
        line = compare(
            f"{figure}, {name}",
            {name: contenders[name], "copy": contenders["copy"]},
            device=where.device,
            goal=None if dtype == torch.float16 else f">= {GOALS[distribution]}",
            gigabytes=moved / 1e9,
            runs=where.pick(20, 2),
        )
        times: dict[str, float] = line["milliseconds"]  # type: ignore[assignment]
        print({name: f"{moved / max(ms, 1e-3) / 1e9:.2f} TB/s" for name, ms in times.items()}, flush=True)


def many(where: Where, noise: NoiseBackend) -> None:
    """One launch per tensor: an OPT-125m's 197 in one call, where launches count, against as many additions."""
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
