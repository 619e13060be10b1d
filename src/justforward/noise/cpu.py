"""The CPU backend: cuts all tensors of a launch into pieces and runs the compiled kernel over them on a few threads."""

from __future__ import annotations

import functools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from justforward.noise import kernels
from justforward.noise.checks import (
    Update,
    check_definition,
    check_draw,
    check_rows,
    copies,
    is_binary,
    mark_written,
    updates,
)

KINDS = {torch.float32: kernels.FP32, torch.bfloat16: kernels.BF16, torch.float16: kernels.FP16}
BITS = {torch.float32: (torch.int32, np.uint32), torch.bfloat16: (torch.int16, np.uint16)}
BITS[torch.float16] = BITS[torch.bfloat16]
MODES = {"nearest": kernels.NEAREST, "stochastic": kernels.STOCHASTIC, "compensated": kernels.COMPENSATED}
NONE = np.empty(0, np.int16)

# A piece keeps a core busy for about half a millisecond; a launch below ALONE is not worth waking a thread for.
PIECE = 1 << 20
ALONE = 1 << 16


class Piece(NamedTuple):
    """A share of a launch: how many elements it writes, and a kernel with its arguments."""

    size: int
    kernel: Callable[..., None]
    arguments: tuple


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
        rounding: str = "nearest",
        residuals: Sequence[torch.Tensor | None] | None = None,
    ) -> None:
        """See `NoiseBackend.add_`."""
        binary = is_binary(distribution)
        todo = updates("cpu", tensors, keys, scale, decay, starts, rounding, residuals)
        flat = [u for u in todo if u.tensor.is_contiguous()]
        _launch([piece for u in flat for piece in _update_pieces(u, u.tensor, rounding, binary)])
        for u in todo:
            if not u.tensor.is_contiguous():
                copy = u.tensor.detach().contiguous()
                _launch(list(_update_pieces(u, copy, rounding, binary)))
                u.tensor.detach().copy_(copy)
        mark_written(tensors)
        mark_written(u.residual for u in todo if u.residual is not None)

    def fill_(self, tensor: torch.Tensor, key: int, start: int = 0, distribution: str = "gaussian") -> None:
        """See `NoiseBackend.fill_`."""
        binary = is_binary(distribution)
        check_draw("cpu", tensor, key, start)
        flat = tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype)
        _launch(list(_pieces(flat, flat, key, start, binary, mode=kernels.FILL)))
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
        self.perturb_many([out], [tensor], [key], scale, start, distribution)

    def perturb_many(
        self,
        outs: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor],
        keys: Sequence[int],
        scale: float | Sequence[float],
        starts: int | Sequence[int] = 0,
        distribution: str = "gaussian",
    ) -> None:
        """See `NoiseBackend.perturb_many`."""
        binary = is_binary(distribution)
        todo = copies("cpu", outs, tensors, keys, scale, starts)
        _launch([piece for c in todo for piece in _pieces(c.out, c.tensor, c.key, c.start, binary, scale=c.scale)])
        mark_written(outs)

    def perturb_rows(
        self,
        out: torch.Tensor,
        tensor: torch.Tensor,
        rows: torch.Tensor,
        key: int,
        scale: float,
        distribution: str = "gaussian",
    ) -> None:
        """See `NoiseBackend.perturb_rows`."""
        binary = is_binary(distribution)
        check_rows("cpu", out, tensor, rows, key, scale)
        _launch(list(_row_pieces(out, tensor, rows, key, binary, scale)))
        mark_written([out])


@functools.cache
def load() -> CpuNoise:
    """The backend, after a check of its bits; RuntimeError where they are wrong."""
    noise = CpuNoise()
    check_definition(noise)
    return noise


def _update_pieces(update: Update, memory: torch.Tensor, rounding: str, binary: bool) -> Iterator[Piece]:
    mode = kernels.NEAREST if memory.dtype == torch.float32 else MODES[rounding]
    residual = NONE if update.residual is None else update.residual.detach().view(-1).numpy()
    return _pieces(
        memory, memory, update.key, update.start, binary,
        scale=update.scale, keep=update.keep, mode=mode, residual=residual,
    )  # fmt: skip


def _pieces(
    dst: torch.Tensor,
    src: torch.Tensor,
    key: int,
    start: int,
    binary: bool,
    *,
    scale: float = 0.0,
    keep: float = 1.0,
    mode: int = kernels.NEAREST,
    residual: np.ndarray = NONE,
) -> Iterator[Piece]:
    to, of, kind = _bits(dst), _bits(src), KINDS[dst.dtype]
    numbers = np.float32(keep), np.float32(scale)
    for at in range(0, to.size, PIECE):
        end = min(at + PIECE, to.size)
        here = to[at:end], of[at:end], residual[at:end], kind, mode, binary
        yield Piece(end - at, kernels.run, (*here, np.uint64(key), np.uint64(start + at), *numbers))


def _row_pieces(
    out: torch.Tensor, tensor: torch.Tensor, rows: torch.Tensor, key: int, binary: bool, scale: float
) -> Iterator[Piece]:
    width = tensor.shape[1]
    to, of = _bits(out).reshape(out.shape), _bits(tensor).reshape(tensor.shape)
    index = rows.contiguous().numpy()
    step = max(1, PIECE // max(1, width))
    for at in range(0, index.size, step):
        here = index[at : at + step]
        arguments = to[at : at + step], of, here, KINDS[out.dtype], binary, np.uint64(key), np.float32(scale)
        yield Piece(here.size * width, kernels.run_rows, arguments)


def _launch(pieces: list[Piece]) -> None:
    """Run all pieces, on the caller's thread and, where there is enough to do, on the pool's."""
    todo = deque(pieces)

    def work() -> None:
        while True:
            try:
                piece = todo.popleft()
            except IndexError:
                return
            piece.kernel(*piece.arguments)

    helpers = min(torch.get_num_threads(), len(pieces)) - 1
    if helpers < 1 or sum(piece.size for piece in pieces) <= ALONE:
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
    return tensor.detach().view(signed).numpy().reshape(-1).view(unsigned)
