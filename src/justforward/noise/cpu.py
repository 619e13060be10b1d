"""The CPU backend: cuts all tensors of a launch into pieces and runs the compiled kernel over them on a few threads."""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from justforward.noise import kernels
from justforward.noise.checks import (
    Update,
    check_definition,
    check_draw,
    check_perturb,
    is_binary,
    mark_written,
    updates,
)

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

    device = "cpu"

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
        binary = is_binary(distribution)
        todo = updates("cpu", tensors, keys, scale, decay, starts)
        flat = [u for u in todo if u.tensor.is_contiguous()]
        _launch([piece for u in flat for piece in _update_pieces(u, u.tensor)], binary)
        for u in todo:
            if not u.tensor.is_contiguous():
                copy = u.tensor.detach().contiguous()
                _launch(list(_update_pieces(u, copy)), binary)
                u.tensor.detach().copy_(copy)
        mark_written(tensors)

    def fill_(self, tensor: torch.Tensor, key: int, start: int = 0, distribution: str = "gaussian") -> None:
        """See `NoiseBackend.fill_`."""
        binary = is_binary(distribution)
        check_draw("cpu", tensor, key, start)
        flat = tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype)
        _launch(list(_pieces(flat, flat, key, start, fill=True)), binary)
        if flat is not tensor:
            tensor.detach().copy_(flat)
        mark_written([tensor])

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
        binary = is_binary(distribution)
        check_perturb("cpu", out, tensor, key, scale, start)
        _launch(list(_pieces(out, tensor, key, start, scale=scale)), binary)
        mark_written([out])


@functools.cache
def load() -> CpuNoise:
    """The backend, after a check of its bits; RuntimeError where they are wrong."""
    noise = CpuNoise()
    check_definition(noise)
    return noise


def _update_pieces(update: Update, memory: torch.Tensor) -> Iterator[Piece]:
    return _pieces(memory, memory, update.key, update.start, scale=update.scale, keep=update.keep)


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
