"""The CPU backend: cuts a launch's tensors into pieces and runs the compiled kernel over them on torch's threads."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from justforward.noise import kernels, openmp
from justforward.noise.checks import (
    Update,
    check_definition,
    check_draw,
    check_rows,
    copies,
    is_binary,
    mark_written,
    move,
    updates,
)

KINDS = {torch.float32: kernels.FP32, torch.bfloat16: kernels.BF16, torch.float16: kernels.FP16}
MODES = {"nearest": kernels.NEAREST, "stochastic": kernels.STOCHASTIC, "compensated": kernels.COMPENSATED}

# A piece is at most PIECE elements (half a millisecond of a core) and at least SMALLEST; a launch below ALONE elements
# is not worth a second thread. Whole Rademacher blocks: a piece draws no block that another draws too.
PIECE, SMALLEST, ALONE = 1 << 20, 1 << 13, 1 << 14


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
        _launch([_update(u, u.tensor, rounding, binary) for u in todo if u.tensor.is_contiguous()])
        for u in todo:
            if not u.tensor.is_contiguous():
                copy = u.tensor.detach().contiguous()
                _launch([_update(u, copy, rounding, binary)])
                u.tensor.detach().copy_(copy)
        mark_written(tensors)
        mark_written(u.residual for u in todo if u.residual is not None)

    def move_(
        self,
        tensor: torch.Tensor,
        values: torch.Tensor,
        key: int,
        decay: float = 0.0,
        *,
        start: int = 0,
        rounding: str = "nearest",
        residual: torch.Tensor | None = None,
    ) -> None:
        """See `NoiseBackend.move_`."""
        u = move("cpu", tensor, values, key, decay, start, rounding, residual)
        memory = tensor if tensor.is_contiguous() else tensor.detach().contiguous()
        _launch([_update(u, memory, rounding, binary=False, given=values)])
        if memory is not tensor:
            tensor.detach().copy_(memory)
        mark_written([tensor] if residual is None else [tensor, residual])

    def fill_(self, tensor: torch.Tensor, key: int, start: int = 0, distribution: str = "gaussian") -> None:
        """See `NoiseBackend.fill_`."""
        binary = is_binary(distribution)
        check_draw("cpu", tensor, key, start)
        flat = tensor if tensor.is_contiguous() else torch.empty(tensor.shape, dtype=tensor.dtype)
        _launch([_row(flat, flat, key, start, binary, mode=kernels.FILL)])
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
        mirrors: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """See `NoiseBackend.perturb_many`."""
        binary = is_binary(distribution)
        todo = copies("cpu", outs, tensors, keys, scale, starts, mirrors)
        _launch([_row(c.out, c.tensor, c.key, c.start, binary, scale=c.scale, mirror=c.mirror) for c in todo])
        mark_written([*outs, *(mirrors or ())])

    def perturb_rows(
        self,
        out: torch.Tensor,
        tensor: torch.Tensor,
        rows: torch.Tensor,
        key: int,
        scale: float,
        distribution: str = "gaussian",
        mirror: torch.Tensor | None = None,
    ) -> None:
        """See `NoiseBackend.perturb_rows`."""
        binary = is_binary(distribution)
        check_rows("cpu", out, tensor, rows, key, scale, mirror)
        table = np.repeat(_table([_row(out, tensor, key, 0, binary, scale=scale, mirror=mirror)]), len(rows), axis=0)
        width = np.uint64(tensor.shape[1])
        size, at = width * np.uint64(tensor.element_size()), np.arange(len(rows), dtype=np.uint64)
        index = rows.contiguous().numpy().astype(np.uint64)
        table[:, kernels.SIZE], table[:, kernels.START] = width, index * width
        table[:, kernels.DST] += at * size
        table[:, kernels.SRC] += index * size
        if mirror is not None:
            table[:, kernels.MIRROR] += at * size
        _run(table, int(len(rows) * width))
        mark_written([out] if mirror is None else [out, mirror])


@functools.cache
def load() -> CpuNoise:
    """The backend, after a check of its bits; RuntimeError where they are wrong."""
    noise = CpuNoise()
    check_definition(noise)
    return noise


def _update(
    update: Update, memory: torch.Tensor, rounding: str, binary: bool, given: torch.Tensor | None = None
) -> list[int]:
    mode = kernels.NEAREST if memory.dtype == torch.float32 else MODES[rounding]
    return _row(
        memory, memory, update.key, update.start, binary,
        scale=update.scale, keep=update.keep, mode=mode, residual=update.residual, given=given,
    )  # fmt: skip


def _row(
    dst: torch.Tensor,
    src: torch.Tensor,
    key: int,
    start: int,
    binary: bool,
    *,
    scale: float = 0.0,
    keep: float = 1.0,
    mode: int = kernels.NEAREST,
    residual: torch.Tensor | None = None,
    mirror: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
) -> list[int]:
    """A row of a launch's table, in the order of `kernels.COLUMNS`; `_pieces` cuts it up."""
    addresses = [dst.data_ptr(), _address(mirror), src.data_ptr(), _address(residual), _address(given)]
    return [*addresses, dst.numel(), key, start, _float_bits(keep), _float_bits(scale), KINDS[dst.dtype], mode, binary]


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _float_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def _table(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.uint64).reshape(-1, kernels.COLUMNS)


def _launch(rows: list[list[int]]) -> None:
    """Cut the rows into pieces of nearly equal size, and run them."""
    total = sum(row[kernels.SIZE] for row in rows)
    share = -(-total // (4 * torch.get_num_threads()))
    piece = min(PIECE, max(SMALLEST, -(-share // SMALLEST) * SMALLEST))
    _run(_table([cut for row in rows for cut in _pieces(row, piece)]), total)


def _pieces(row: list[int], piece: int) -> list[list[int]]:
    size = row[kernels.SIZE]
    if size <= piece:
        return [row]
    width = 4 if row[kernels.KIND] == kernels.FP32 else 2
    steps = (
        (kernels.DST, width),
        (kernels.SRC, width),
        (kernels.MIRROR, width),
        (kernels.RESIDUAL, 2),
        (kernels.GIVEN, 4),
    )
    cuts = []
    for at in range(0, size, piece):
        cut = list(row)
        for column, step in steps:
            if row[column]:
                cut[column] += at * step
        cut[kernels.SIZE], cut[kernels.START] = min(piece, size - at), row[kernels.START] + at
        cuts.append(cut)
    return cuts


def _run(table: np.ndarray, elements: int) -> None:
    """Run a table's pieces: alone where there is little to do, else on torch's own threads or, failing them, a pool."""
    threads = min(torch.get_num_threads(), len(table))
    if threads < 2 or elements <= ALONE or _forked:
        kernels.share(table, 0, 1)
    elif not openmp.run(table, torch.get_num_threads()):
        pending = [_pool(threads).submit(kernels.share, table, i, threads) for i in range(1, threads)]
        kernels.share(table, 0, threads)
        for future in pending:
            future.result()


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="justforward-noise")


_forked: list[bool] = []


# A forked child has neither the team's nor the pool's threads.
if sys.platform != "win32":
    os.register_at_fork(after_in_child=lambda: _forked.append(True))
