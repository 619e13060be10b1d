"""The CPU backend: cuts all tensors of a launch into pieces and runs the compiled kernel over them on a few threads."""

from __future__ import annotations

import functools
import numbers
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from justforward.noise import kernels, reference

KINDS = {torch.float32: kernels.FP32, torch.bfloat16: kernels.BF16, torch.float16: kernels.FP16}
BITS = {torch.float32: (torch.int32, np.uint32), torch.bfloat16: (torch.int16, np.uint16)}
BITS[torch.float16] = BITS[torch.bfloat16]

# A piece keeps a core busy for about half a millisecond; a launch below ALONE is not worth waking a thread for.
PIECE = 1 << 20
ALONE = 1 << 16


@dataclass(frozen=True, slots=True)
class Piece:
    """A flat run of weights, as bits, and what to do with it: one call of `kernels.run`."""

    dst: np.ndarray
    src: np.ndarray
    kind: int
    fill: bool
    key: int
    start: int
    keep: float
    scale: float


class CpuNoise:
    """`NoiseBackend` for tensors in main memory; `torch.get_num_threads()` bounds its threads."""

    def add_(
        self,
        tensors: Sequence[torch.Tensor],
        keys: Sequence[int],
        scale: float | Sequence[float],
        decay: float | Sequence[float] = 0.0,
        distribution: str = "gaussian",
        *,
        starts: int | Sequence[int] = 0,
    ) -> None:
        """See `NoiseBackend.add_`."""
        binary = _is_binary(distribution)
        scales, decays = _each(scale, len(tensors), "scale"), _each(decay, len(tensors), "decay")
        begins = _each(starts, len(tensors), "starts")
        if len(keys) != len(tensors):
            raise ValueError(f"keys: {len(keys)} for {len(tensors)} tensors")
        for tensor, key, begin, s, d in zip(tensors, keys, begins, scales, decays, strict=True):
            _check(tensor, key, begin)
            _check_finite("scale", s)
            _check_finite("decay", d)
        _check_distinct(tensors)

        pieces: list[Piece] = []
        strided: list[tuple[torch.Tensor, int, int, float, float]] = []
        for tensor, key, begin, s, d in zip(tensors, keys, begins, scales, decays, strict=True):
            if tensor.is_contiguous():
                pieces += _pieces(tensor, tensor, key, begin, scale=s, keep=1 - d)
            else:
                strided.append((tensor, key, begin, s, d))
        _launch(pieces, binary)
        for tensor, key, begin, s, d in strided:
            copy = tensor.detach().contiguous()
            _launch(list(_pieces(copy, copy, key, begin, scale=s, keep=1 - d)), binary)
            tensor.detach().copy_(copy)
        _written(tensors)

    def fill_(self, tensor: torch.Tensor, key: int, start: int = 0, distribution: str = "gaussian") -> None:
        """See `NoiseBackend.fill_`."""
        binary = _is_binary(distribution)
        _check(tensor, key, start)
        flat = tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype)
        _launch(list(_pieces(flat, flat, key, start, fill=True)), binary)
        if flat is not tensor:
            tensor.detach().copy_(flat)
        _written([tensor])

    def perturb(
        self,
        out: torch.Tensor,
        tensor: torch.Tensor,
        key: int,
        scale: float,
        start: int = 0,
        distribution: str = "gaussian",
    ) -> None:
        """See `NoiseBackend.perturb`."""
        binary = _is_binary(distribution)
        _check(tensor, key, start)
        _check(out, key, start)
        if out.shape != tensor.shape or out.dtype != tensor.dtype:
            raise ValueError(f"out must be {tensor.dtype} of {tuple(tensor.shape)}, is {out.dtype} {tuple(out.shape)}")
        if not (out.is_contiguous() and tensor.is_contiguous()):
            raise ValueError("perturb takes contiguous tensors: call .contiguous() first")
        _check_finite("scale", scale)
        _launch(list(_pieces(out, tensor, key, start, scale=scale)), binary)
        _written([out])


@functools.cache
def load() -> CpuNoise:
    """The backend, after a check that this machine's compiled code gives the bits of the reference.

    Raises RuntimeError where it does not: a compiler that fuses or reorders, or a stale kernel cache.
    """
    noise = CpuNoise()
    drawn = torch.empty(1000)
    for distribution, expected in (("gaussian", reference.gaussian), ("rademacher", reference.rademacher)):
        noise.fill_(drawn, 0x0123456789ABCDEF, 77, distribution)
        if not np.array_equal(drawn.numpy(), expected(0x0123456789ABCDEF, 77, 1000)):
            raise RuntimeError(
                f"the compiled {distribution} noise differs from its definition; delete {kernels.__file__}'s "
                "__pycache__ (or NUMBA_CACHE_DIR) and try again"
            )
    return noise


def _pieces(
    dst: torch.Tensor, src: torch.Tensor, key: int, start: int, *, scale=0.0, keep=1.0, fill=False
) -> Iterator[Piece]:
    to, of, kind = _bits(dst), _bits(src), KINDS[dst.dtype]
    for at in range(0, to.size, PIECE):
        end = at + PIECE
        yield Piece(to[at:end], of[at:end], kind, fill, key, start + at, keep, scale)


def _launch(pieces: list[Piece], binary: bool) -> None:
    """Run all pieces, on the caller's thread and, where there is enough to do, on the pool's."""
    todo = deque(pieces)

    def work() -> None:
        while True:
            try:
                p = todo.popleft()
            except IndexError:
                return
            kernels.run(
                p.dst, p.src, p.kind, p.fill, binary, np.uint64(p.key), np.uint64(p.start),
                np.float32(p.keep), np.float32(p.scale),
            )  # fmt: skip

    helpers = min(torch.get_num_threads(), len(pieces)) - 1
    if helpers < 1 or sum(piece.dst.size for piece in pieces) <= ALONE:
        work()
        return
    pending = [_pool(torch.get_num_threads() - 1).submit(work) for _ in range(helpers)]
    work()
    for future in pending:
        future.result()


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="justforward-noise")


# A forked child has the pool but none of its threads.
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor as a flat array of unsigned integers."""
    signed, unsigned = BITS[tensor.dtype]
    return tensor.detach().reshape(-1).view(signed).numpy().view(unsigned)


def _written(tensors: Sequence[torch.Tensor]) -> None:
    """Tell autograd, which cannot see writes through numpy, that these tensors have changed."""
    torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])


def _is_binary(distribution: str) -> bool:
    if distribution not in reference.DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(reference.DISTRIBUTIONS)}, got {distribution!r}")
    return distribution == "rademacher"


def _each(value: Any, count: int, name: str) -> list[Any]:
    """One number per tensor."""
    if isinstance(value, numbers.Real):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} for {count} tensors")
    return values


def _check(tensor: torch.Tensor, key: int, start: int) -> None:
    if tensor.device.type != "cpu":
        raise ValueError(f"the cpu noise backend got a tensor on {tensor.device}")
    if tensor.dtype not in KINDS:
        raise ValueError(f"noise is defined for float32, bfloat16 and float16 weights, got {tensor.dtype}")
    if not 0 <= key < 2**64 or start < 0:
        raise ValueError(f"a key is an integer of 64 bits and a start is not negative, got {key} and {start}")
    if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} repeats its memory (expanded?): pass its base")


def _check_finite(name: str, value: float) -> None:
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(f"{name} must be finite in float32, got {value}")


def _check_distinct(tensors: Sequence[torch.Tensor]) -> None:
    """Refuse two tensors that begin at one address, as tied weights do: each would add its noise to both."""
    seen: dict[int, int] = {}
    for index, tensor in enumerate(tensors):
        if tensor.numel() and (other := seen.setdefault(tensor.data_ptr(), index)) != index:
            raise ValueError(f"tensors {other} and {index} share their memory (tied weights?): pass one of them")
