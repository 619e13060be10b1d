"""The noise kernel: the bits of `noise.reference`, for everything that it is compiled for.

Nearly all of it is the compilation of some 200 variants, so it runs in several processes. What is expected is computed
by numpy, which compiles nothing.
"""

from __future__ import annotations

import importlib.util
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bench.common import report
from bench.gpu.where import Where
from justforward.noise import DISTRIBUTIONS, ROUNDINGS, NoiseBackend, noise_key, reference

if importlib.util.find_spec("triton") is not None:
    import triton  # noqa: F401  # pyright: ignore[reportMissingImports]  # once, for all processes

KEY = noise_key(11, 5, 0, "model.layers.0.weight")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
PLACES = ((1, 191), (257, 0), (8192, 191), (131_072, 2**33 + 528), (100_003, 2**33 + 77))
"""Sizes and starts. Triton compiles by whether 16 divides each, and for 1; beyond 2^32 a counter has two words."""
FEW = ((257, 0), (8192, 16), (1000, 191))
WIDTHS = (255, 768, 770)
"""Of rows: three kinds of addresses."""
SCALE, DECAY = 1e-3, 0.01
PROCESSES = 12


def measure(where: Where) -> None:
    """A line for each kind, as it ends: the cases that differ, or what they failed by."""
    roundings = [(d, r) for d in DTYPES for r in (ROUNDINGS[:1] if d == torch.float32 else ROUNDINGS)]
    places, few = where.pick((PLACES, FEW), (PLACES[1:3], FEW[:1]))
    kinds = {
        added: [(*d, *other) for d, *other in itertools.product(roundings, DISTRIBUTIONS, places)],
        perturbed: list(itertools.product(DTYPES, DISTRIBUTIONS, places)),
        added_at_once: list(itertools.product(ROUNDINGS, DISTRIBUTIONS)),
        perturbed_at_once: list(itertools.product(DISTRIBUTIONS)),
        in_rows: list(itertools.product(DTYPES, DISTRIBUTIONS, WIDTHS)),
        drawn: list(itertools.product(DISTRIBUTIONS, places)),
        moved: [(*d, place) for d, place in itertools.product(roundings, few)],
    }
    todo = [(where, same, case) for same, cases in kinds.items() for case in cases]
    # Forked, so that libraries are imported once: nothing here touches the device before.
    count = where.pick(min(PROCESSES, os.cpu_count() or 1), 1)
    with multiprocessing.get_context("fork").Pool(count, torch.set_num_threads, (1,)) as pool:
        found = pool.imap(_wrong, todo)
        for same, cases in kinds.items():
            report_kind(where, same.__name__, list(itertools.islice(found, len(cases))))


def report_kind(where: Where, name: str, found: Sequence[str]) -> None:
    """Of the cases of a kind, which were wrong."""
    wrong = [one for one in found if one]
    equal = {name.replace("_", " "): not wrong}
    figure, facts = f"noise bits: {name.replace('_', ' ')}", {"cases": len(found), "wrong": wrong[:5]}
    report(figure, equal=equal, goal="equal", device=where.device, differ=len(wrong), **facts)


def _wrong(todo: tuple[Where, Callable[..., bool], tuple]) -> str:
    """Nothing where a case is right."""
    where, same, case = todo
    try:
        return "" if same(where.kernel(), *case) else f"{case}: differs"
    except Exception as error:  # which costs its own line, not those of the others
        return f"{case}: {type(error).__name__}: {error}"[:500]


def drawn_by(distribution: str, key: int, start: int, size: int) -> np.ndarray:
    """The noise by its definition."""
    return {"gaussian": reference.gaussian, "rademacher": reference.rademacher}[distribution](key, start, size)


def weights(size: int, dtype: torch.dtype) -> Tensor:
    """Of every magnitude from fp16's subnormals to 1."""
    chance = torch.Generator().manual_seed(size)
    magnitudes = (torch.rand(size, generator=chance) * 27 - 27).exp2()
    return (torch.randn(size, generator=chance) * magnitudes).to(dtype)


def bits_of(tensor: Tensor) -> np.ndarray:
    """As integers: NaN is NaN then, and -0 is not 0."""
    flat = tensor.detach().cpu().reshape(-1)
    return flat.view(torch.int32).numpy() if flat.dtype == torch.float32 else flat.view(torch.int16).numpy()


def values_of(tensor: Tensor) -> np.ndarray:
    """In fp32."""
    return tensor.detach().cpu().float().reshape(-1).numpy()


def nearest(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """The bits of fp32 values in a dtype."""
    if dtype == torch.float32:
        return values.view(np.int32)
    return reference.round_nearest(values, DTYPES[dtype]).view(np.int16)


class Expected:
    """A weight by the definition, with what compensated rounding keeps."""

    def __init__(self, before: Tensor, rounding: str):
        self.dtype, self.rounding = before.dtype, "nearest" if before.dtype == torch.float32 else rounding
        self.bits, self.kept = bits_of(before).copy(), np.zeros(before.numel(), dtype=np.int16)

    def add(self, values: np.ndarray, key: int, start: int, distribution: str, decay: float) -> None:
        """Shrink it by the decay, and add values."""
        name, keep = DTYPES[self.dtype], np.float32(1 - decay)
        if self.rounding == "compensated":
            held = reference.master(self.bits.view(np.uint16), self.kept, name)
            bits, self.kept = reference.round_compensated(held * keep + values, name)
            self.bits = bits.view(np.int16)
            return
        typed = torch.from_numpy(self.bits).view(self.dtype)
        total = values_of(typed) * keep + values
        if self.rounding == "stochastic":
            words = reference.rounding_words(key, start, len(total), distribution)
            self.bits = reference.round_stochastic(total, words, name).view(np.int16)
        else:
            self.bits = nearest(total, self.dtype)

    def is_same(self, tensor: Tensor, residual: Tensor | None) -> bool:
        """Whether these are its bits."""
        kept = residual is None or np.array_equal(bits_of(residual), self.kept)
        return kept and np.array_equal(bits_of(tensor), self.bits)


def residual_of(weight: Tensor, rounding: str) -> Tensor | None:
    """Zeros where the weight keeps something."""
    if rounding != "compensated" or weight.dtype == torch.float32:
        return None
    return torch.zeros(weight.shape, dtype=torch.int16, device=weight.device)


def drawn(noise: NoiseBackend, distribution: str, place: tuple[int, int]) -> bool:
    """The noise itself."""
    size, start = place
    out = torch.empty(size, device=noise.device)
    noise.fill_(out, KEY, start, distribution)
    return np.array_equal(values_of(out), drawn_by(distribution, KEY, start, size))


def added(noise: NoiseBackend, dtype: torch.dtype, rounding: str, distribution: str, place: tuple[int, int]) -> bool:
    """Two updates of one tensor."""
    return _updated(noise, [dtype], [place], rounding, distribution)


def added_at_once(noise: NoiseBackend, rounding: str, distribution: str) -> bool:
    """Two updates of many tensors in one call."""
    dtypes, places = zip(*several(noise), strict=True)
    return _updated(noise, dtypes, places, rounding, distribution)


def several(noise: NoiseBackend) -> Iterator[tuple[torch.dtype, tuple[int, int]]]:
    """Small and large ones, in no order: of every dtype those that 16 divides, and others."""
    sizes = (1, 16, 257, 768, 5) if noise.device == "cpu" else (1, 16, 5, 768, 257, 2048, 100_003, 50, 65_536, 3, 770)
    starts = (0, 191, 16, 2**33 + 77, 8191)
    for (i, size), dtype in itertools.product(enumerate(sizes), DTYPES):
        yield dtype, (size, starts[(i + size) % len(starts)])


def numbers(count: int, scale: float) -> list[float]:
    """Different ones around a scale, of both signs."""
    return [scale * (1 + i / 8) * (-1) ** i for i in range(count)]


def _updated(
    noise: NoiseBackend,
    dtypes: Sequence[torch.dtype],
    places: Sequence[tuple[int, int]],
    rounding: str,
    distribution: str,
) -> bool:
    before = [weights(size, dtype) for dtype, (size, _) in zip(dtypes, places, strict=True)]
    expected = [Expected(weight, rounding) for weight in before]
    tensors = [weight.to(noise.device, copy=True) for weight in before]
    kept = [residual_of(weight, rounding) for weight in tensors]
    starts = [start for _, start in places]
    scales, decays = numbers(len(before), SCALE), [abs(d) for d in numbers(len(before), DECAY)]
    extra = {"residuals": kept} if rounding == "compensated" else {}
    for step in range(2):
        keys = [KEY + step + 2 * i for i in range(len(before))]
        noise.add_(tensors, keys, scales, decays, distribution, starts=starts, rounding=rounding, **extra)
        for one, key, scale, decay, start in zip(expected, keys, scales, decays, starts, strict=True):
            z = drawn_by(distribution, key, start, len(one.bits))
            one.add(np.float32(scale) * z, key, start, distribution, decay)
    return all(e.is_same(t, r) for e, t, r in zip(expected, tensors, kept, strict=True))


def moved(noise: NoiseBackend, dtype: torch.dtype, rounding: str, place: tuple[int, int]) -> bool:
    """Given values, rounded by the bits that are Rademacher noise's."""
    size, start = place
    before = weights(size, dtype)
    expected, after = Expected(before, rounding), before.to(noise.device, copy=True)
    given, kept = np.float32(SCALE) * reference.gaussian(KEY + 1, 0, size), residual_of(after, rounding)
    values = torch.from_numpy(given).to(noise.device)
    noise.move_(after, values, KEY, DECAY, start=start, rounding=rounding, residual=kept)
    expected.add(given, KEY, start, "rademacher", DECAY)
    return expected.is_same(after, kept)


def perturbed(noise: NoiseBackend, dtype: torch.dtype, distribution: str, place: tuple[int, int]) -> bool:
    """Both signs of a probe of one tensor."""
    return _probed(noise, [dtype], [place], distribution)


def perturbed_at_once(noise: NoiseBackend, distribution: str) -> bool:
    """Both signs of a probe of many tensors in one call."""
    dtypes, places = zip(*several(noise), strict=True)
    return _probed(noise, dtypes, places, distribution)


def _probed(
    noise: NoiseBackend, dtypes: Sequence[torch.dtype], places: Sequence[tuple[int, int]], distribution: str
) -> bool:
    before = [weights(size, dtype) for dtype, (size, _) in zip(dtypes, places, strict=True)]
    tensors = [weight.to(noise.device, copy=True) for weight in before]
    keys, scales, starts = [KEY + i for i in range(len(before))], numbers(len(before), SCALE), [s for _, s in places]
    outs, mirrors = ([torch.full_like(t, 7.0) for t in tensors] for _ in range(2))
    alone = [torch.full_like(t, 7.0) for t in tensors]
    noise.perturb_many(outs, tensors, keys, scales, starts, distribution, mirrors=mirrors)
    noise.perturb_many(alone, tensors, keys, scales, starts, distribution)
    right = [np.array_equal(bits_of(t), bits_of(weight)) for t, weight in zip(tensors, before, strict=True)]
    for i, weight in enumerate(before):
        z = np.float32(scales[i]) * drawn_by(distribution, keys[i], starts[i], weight.numel())
        plus, minus = (nearest(values_of(weight) + one, weight.dtype) for one in (z, -z))
        right += [np.array_equal(bits_of(out[i]), plus) for out in (outs, alone)]
        right.append(np.array_equal(bits_of(mirrors[i]), minus))
    return all(right)


def in_rows(noise: NoiseBackend, dtype: torch.dtype, distribution: str, width: int) -> bool:
    """Both signs of rows of a table, as an embedding looks them up."""
    before, rows = weights(50 * width, dtype).view(50, width), torch.tensor([49, 0, 7, 8, 7])
    table = before.to(noise.device, copy=True)
    out, mirror = (torch.empty(len(rows), width, dtype=dtype, device=noise.device) for _ in range(2))
    noise.perturb_rows(out, table, rows.to(noise.device), KEY, SCALE, distribution, mirror=mirror)
    z = (np.float32(SCALE) * drawn_by(distribution, KEY, 0, 50 * width)).reshape(50, width)[rows.numpy()].reshape(-1)
    plus, minus = (nearest(values_of(before[rows]) + one, dtype) for one in (z, -z))
    return np.array_equal(bits_of(out), plus) and np.array_equal(bits_of(mirror), minus)
