"""The GPU backend: noise.reference, element for element, by Triton's kernels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from justforward.noise import recording, reference
from justforward.noise.checks import (
    check_definition,
    check_draw,
    check_rows,
    copies,
    is_binary,
    mark_written,
    move,
    updates,
)

try:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ValueError("noise on a GPU needs Triton: pip install triton") from error

from justforward.noise import triton_kernels as kernels

BLOCKS = 8
"""Blocks of 64 counters to one program of four warps. Of what was tried on an H100 (bench/results) this is the fastest
in float32 and within a tenth of it in bf16; so are the numbers below."""

SIGN_BLOCKS, SIGN_BITS = 16, 2
"""Of Rademacher blocks, with so many bits of their words."""

SMALL = 1 << 22
"""Tensors of at most so many elements share a launch: one of its own takes the host longer (tens of microseconds) than
the GPU takes for them (12 in bf16 on an H100)."""

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Pass(NamedTuple):
    """dst <- src * keep + scale * z, and mirror <- src * keep - scale * z; all contiguous."""

    dst: torch.Tensor
    src: torch.Tensor
    key: int
    start: int
    scale: float
    keep: float
    residual: torch.Tensor | None = None
    mirror: torch.Tensor | None = None

    @property
    def written(self) -> tuple[torch.Tensor | None, ...]:
        """All that has an address, in the order of a table's columns."""
        return self.dst, self.mirror, self.src, self.residual


class TritonNoise:
    """`NoiseBackend` for CUDA tensors (and, under Triton's interpreter, for those of `device`)."""

    def __init__(self, device: str = "cuda"):
        self.device = device

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
        """See `NoiseBackend.add_`; one launch per large tensor, and one for all small ones of a dtype."""
        binary = is_binary(distribution)
        todo = updates(self.device, tensors, keys, scale, decay, starts, rounding, residuals)
        flat = [u.tensor.detach().contiguous() for u in todo]
        passes = [
            Pass(t, t, u.key, u.start, u.scale, u.keep, residual=u.residual) for t, u in zip(flat, todo, strict=True)
        ]
        _launch_all(passes, binary, rounding)
        for t, u in zip(flat, todo, strict=True):
            if not u.tensor.is_contiguous():
                u.tensor.detach().copy_(t)
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
        u = move(self.device, tensor, values, key, decay, start, rounding, residual)
        flat = tensor.detach().contiguous()
        _launch(Pass(flat, flat, key, start, 1.0, u.keep, residual=residual), False, rounding, values.detach())
        if not tensor.is_contiguous():
            tensor.detach().copy_(flat)
        mark_written([tensor] if residual is None else [tensor, residual])

    def fill_(self, tensor: torch.Tensor, key: int, start: int = 0, distribution: str = "gaussian") -> None:
        """See `NoiseBackend.fill_`."""
        binary = is_binary(distribution)
        check_draw(self.device, tensor, key, start)
        flat = tensor.detach().contiguous()
        _launch(Pass(flat, flat, key, start, 0.0, 1.0), binary, "fill")
        if not tensor.is_contiguous():
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
        """See `NoiseBackend.perturb_many`; launches as in `add_`."""
        binary = is_binary(distribution)
        todo = copies(self.device, outs, tensors, keys, scale, starts, mirrors)
        passes = [Pass(c.out.detach(), c.tensor.detach(), c.key, c.start, c.scale, 1.0, mirror=c.mirror) for c in todo]
        _launch_all(passes, binary, "nearest")
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
        """See `NoiseBackend.perturb_rows`; that rows are in range is not checked on a GPU."""
        binary = is_binary(distribution)
        check_rows(self.device, out, tensor, rows, key, scale, mirror)
        size, options = tensor.shape[1], {"BINARY": binary, "MIRROR": mirror is not None, "BLOCKS": BLOCKS}
        if out.numel():
            # A row may begin anywhere in a block: room for the worst case.
            programs = triton.cdiv((size - 2) // reference.GAUSSIAN_BLOCK + 2, BLOCKS)
            with _on(out):
                row = _row(key, scale)
                kernels.rows_of[(len(rows), programs)](  # pyright: ignore[reportIndexIssue]
                    out.detach(), None if mirror is None else mirror.detach(), tensor.detach(), rows.contiguous(), row,
                    size, *_halves(key), float(np.float32(scale)), RECORDED=row is not None, enable_fp_fusion=False,
                    **options,
                )  # fmt: skip
        mark_written([out] if mirror is None else [out, mirror])


@functools.cache
def load() -> TritonNoise:
    """The backend for CUDA tensors, after a check of its bits; RuntimeError where they are wrong."""
    noise = TritonNoise()
    check_definition(noise)
    return noise


def _launch_all(passes: Sequence[Pass], binary: bool, rounding: str) -> None:
    """Small tensors of one kind in one launch."""
    if len(passes) == 1:
        _launch(passes[0], binary, rounding)
        return
    kinds: dict[Any, list[Pass]] = {}
    for one in passes:
        if one.dst.numel() > SMALL:
            _launch(one, binary, rounding)
        elif one.dst.numel():
            kinds.setdefault((one.dst.device, one.dst.dtype, one.mirror is None), []).append(one)
    for some in kinds.values():
        addresses = np.array([[0 if t is None else t.data_ptr() for t in one.written] for one in some])
        spans = np.array([(one.dst.numel(), one.start) for one in some])
        even = np.all(addresses % 16 == 0, axis=1) & np.all(spans % 16 == 0, axis=1)
        for chosen in (np.flatnonzero(even), np.flatnonzero(~even)):
            if len(chosen) == 1:
                _launch(some[chosen[0]], binary, rounding)
            elif len(chosen):
                own = [some[i] for i in chosen]
                _launch_many(own, addresses[chosen], spans[chosen], binary, rounding, bool(even[chosen[0]]))


def _launch(one: Pass, binary: bool, rounding: str, given: torch.Tensor | None = None) -> None:
    if one.dst.numel() == 0:
        return
    unit, size = _unit(binary), one.dst.numel()
    programs = _programs(size, one.start, binary)
    row = _row(one.key, one.scale)
    options = _options(one, binary, rounding) | {"GIVEN": given is not None, "RECORDED": row is not None}
    options["WIDE"] = size + 64 * unit >= 2**31
    with _on(one.dst):
        kernels.one[(programs,)](  # pyright: ignore[reportIndexIssue]
            one.dst, one.mirror, one.src, one.residual, given, row, size, one.start // unit, one.start % unit,
            *_halves(one.key), float(np.float32(one.keep)), float(np.float32(one.scale)), **options,
        )  # fmt: skip


def _row(key: int, scale: float) -> torch.Tensor | None:
    launches = recording.current()
    return None if launches is None else launches.row(key, scale)


def _launch_many(
    passes: Sequence[Pass], addresses: np.ndarray, spans: np.ndarray, binary: bool, rounding: str, even: bool
) -> None:
    """Of addresses [n, 4] and of sizes and starts, [n, 2]."""
    if recording.current() is not None:
        raise recording.NotRecordable("small tensors share a launch")
    unit, count = _unit(binary), len(passes)
    sizes, starts = spans.T
    programs = _programs(sizes, starts, binary)
    table = np.empty(count * kernels.COLUMNS + programs.sum(), np.int64)
    rows, owners = table[: count * kernels.COLUMNS].reshape(count, -1), table[count * kernels.COLUMNS :]
    rows[:, :4] = addresses
    rows[:, 4], rows[:, 5], rows[:, 6] = sizes, starts // unit, starts % unit
    rows[:, 7] = np.cumsum(programs) - programs
    rows[:, 8] = np.array([one.key for one in passes], np.uint64).view(np.int64)
    rows[:, 9:] = np.array([[one.scale, one.keep] for one in passes], np.float32).view(np.int64)
    owners[:] = np.repeat(np.arange(count), programs)
    first = passes[0]
    sent = torch.from_numpy(table)
    if first.dst.is_cuda:
        sent = sent.pin_memory().to(first.dst.device, non_blocking=True)
    options = _options(first, binary, rounding) | {"DTYPE": DTYPES[first.dst.dtype], "EVEN": even}
    with _on(first.dst):
        kernels.many[(len(owners),)](  # pyright: ignore[reportIndexIssue]
            sent, sent[count * kernels.COLUMNS :], **options
        )


def _options(one: Pass, binary: bool, rounding: str) -> dict[str, Any]:
    mode = "nearest" if one.dst.dtype == torch.float32 and rounding != "fill" else rounding
    options = {"MODE": kernels.MODES[mode], "BINARY": binary, "MIRROR": one.mirror is not None}
    return options | {"BLOCKS": SIGN_BLOCKS if binary else BLOCKS, "BITS": SIGN_BITS, "enable_fp_fusion": False}


def _unit(binary: bool) -> int:
    """Elements of a block."""
    return 32 * reference.GAUSSIAN_BLOCK if binary else reference.GAUSSIAN_BLOCK


def _programs(size: Any, start: Any, binary: bool) -> Any:
    """Of a pass over so many elements, numbers or arrays."""
    blocks = (start % _unit(binary) + size - 1) // _unit(binary) + 1
    return -(-blocks // SIGN_BLOCKS) * (32 // SIGN_BITS) if binary else -(-blocks // BLOCKS)


def _halves(key: int) -> list[int]:
    """A key's words as Triton takes them, low and high."""
    return np.array([key], dtype="<u8").view("<i4").tolist()


def _on(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()
