"""What every backend checks before it writes anything."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from justforward.noise import reference
from justforward.noise.reference import DISTRIBUTIONS, ROUNDINGS

if TYPE_CHECKING:
    from justforward.noise import NoiseBackend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Update:
    """One tensor of a launch: p <- p * keep + scale * z(key, start ...); `residual` is that of a compensated p."""

    tensor: torch.Tensor
    key: int
    start: int
    scale: float
    keep: float
    residual: torch.Tensor | None


class Copy(NamedTuple):
    """One tensor of a launch: out <- tensor + scale * z(key, start ...), and mirror <- tensor - scale * z."""

    out: torch.Tensor
    tensor: torch.Tensor
    key: int
    start: int
    scale: float
    mirror: torch.Tensor | None


def updates(
    device: str,
    tensors: Sequence[torch.Tensor],
    keys: Sequence[int],
    scale: float | Sequence[float],
    decay: float | Sequence[float],
    starts: int | Sequence[int],
    rounding: str,
    residuals: Sequence[torch.Tensor | None] | None,
) -> list[Update]:
    """The arguments of `NoiseBackend.add_`, checked, one record per tensor."""
    count = len(tensors)
    if len(keys) != count:
        raise ValueError(f"keys: {len(keys)} for {count} tensors")
    scales, decays, begins = _each(scale, count, "scale"), _each(decay, count, "decay"), _each(starts, count, "starts")
    extras = _residuals(tensors, rounding, residuals)
    result = []
    for tensor, key, start, s, d, residual in zip(tensors, keys, begins, scales, decays, extras, strict=True):
        check_draw(device, tensor, key, start)
        check_finite("scale", s)
        check_finite("decay", d)
        result.append(Update(tensor, key, start, s, 1 - d, residual))
    _check_distinct(tensors)
    return result


def move(
    device: str,
    tensor: torch.Tensor,
    values: torch.Tensor,
    key: int,
    decay: float,
    start: int,
    rounding: str,
    residual: torch.Tensor | None,
) -> Update:
    """The arguments of `NoiseBackend.move_`, checked."""
    residuals = None if rounding != "compensated" else [residual]
    (update,) = updates(device, [tensor], [key], 1.0, decay, start, rounding, residuals)
    if values.shape != tensor.shape or values.dtype != torch.float32 or values.device != tensor.device:
        is_now = f"{values.dtype} of {tuple(values.shape)} on {values.device}"
        raise ValueError(f"values must be float32 of {tuple(tensor.shape)} on {tensor.device}, are {is_now}")
    if not values.is_contiguous():
        raise ValueError("values must be contiguous: call .contiguous() first")
    return update


def copies(
    device: str,
    outs: Sequence[torch.Tensor],
    tensors: Sequence[torch.Tensor],
    keys: Sequence[int],
    scale: float | Sequence[float],
    starts: int | Sequence[int],
    mirrors: Sequence[torch.Tensor] | None = None,
) -> list[Copy]:
    """The arguments of `NoiseBackend.perturb_many`, checked, one record per tensor."""
    count = len(tensors)
    if len(outs) != count or len(keys) != count:
        raise ValueError(f"outs: {len(outs)} and keys: {len(keys)} for {count} tensors")
    if mirrors is not None and len(mirrors) != count:
        raise ValueError(f"mirrors: {len(mirrors)} for {count} tensors")
    begins, scales = _each(starts, count, "starts"), _each(scale, count, "scale")
    result = list(map(Copy, outs, tensors, keys, begins, scales, mirrors or [None] * count))
    for out, tensor, key, start, s, mirror in result:
        check_draw(device, tensor, key, start)
        for written in (out,) if mirror is None else (out, mirror):
            _check_out(device, written, tensor.shape, tensor)
        check_finite("scale", s)
    _check_distinct([*outs, *(mirrors or ())])
    return result


def check_rows(
    device: str,
    out: torch.Tensor,
    tensor: torch.Tensor,
    rows: torch.Tensor,
    key: int,
    scale: float,
    mirror: torch.Tensor | None = None,
) -> None:
    """Check the arguments of `NoiseBackend.perturb_rows`."""
    check_draw(device, tensor, key, 0)
    if tensor.dim() != 2 or rows.dim() != 1:
        raise ValueError(f"perturb_rows takes a matrix and a list of rows, got {tensor.dim()} and {rows.dim()} axes")
    if rows.dtype != torch.int64 or rows.device != tensor.device:
        raise ValueError(f"rows must be int64 on {tensor.device}, is {rows.dtype} on {rows.device}")
    for written in (out,) if mirror is None else (out, mirror):
        _check_out(device, written, (rows.numel(), tensor.shape[1]), tensor)
    check_finite("scale", scale)
    if rows.numel() and rows.device.type == "cpu":  # a GPU would have to be waited for
        low, high = (int(bound) for bound in rows.aminmax())
        if low < 0 or high >= tensor.shape[0]:
            raise ValueError(f"rows must be from 0 to {tensor.shape[0] - 1}, are from {low} to {high}")


def _check_out(device: str, out: torch.Tensor, shape: Sequence[int], tensor: torch.Tensor) -> None:
    """Check that a perturbed copy of `tensor`, or rows of it, can be written into `out`."""
    if out.shape != shape or out.dtype != tensor.dtype or out.device.type != device:
        is_now = f"{out.dtype} of {tuple(out.shape)} on {out.device}"
        raise ValueError(f"out must be {tensor.dtype} of {tuple(shape)} on {device}, is {is_now}")
    if not (out.is_contiguous() and tensor.is_contiguous()):
        raise ValueError("perturbed copies take contiguous tensors: call .contiguous() first")


def check_draw(device: str, tensor: torch.Tensor, key: int, start: int) -> None:
    """Check that noise of this key and start can be written into the tensor by the backend of `device`."""
    if tensor.device.type != device:
        raise ValueError(f"the {device} noise backend got a tensor on {tensor.device}")
    if tensor.dtype not in DTYPES:
        raise ValueError(f"noise is defined for float32, bfloat16 and float16 weights, got {tensor.dtype}")
    if not 0 <= key < 2**64 or start < 0:
        raise ValueError(f"a key is an integer of 64 bits and a start is not negative, got {key} and {start}")
    if not tensor.is_contiguous() and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    ):
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} repeats its memory (expanded?): pass its base")


def check_finite(name: str, value: float) -> None:
    """Refuse what fp32 cannot hold."""
    if not abs(value) <= LARGEST:
        raise ValueError(f"{name} must be finite in float32, got {value}")


def is_binary(distribution: str) -> bool:
    """Whether z is Rademacher; ValueError for a distribution that is not known."""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    return distribution == "rademacher"


def mark_written(tensors: Iterable[torch.Tensor]) -> None:
    """Tell autograd, which cannot see a kernel's writes, that these tensors have changed."""
    torch.autograd.graph.increment_version([tensor for tensor in tensors if not tensor.is_inference()])


def check_definition(noise: NoiseBackend) -> None:
    """Hold a backend, on this very machine, to the bits of the reference.

    Raises RuntimeError where it differs: a compiler that fuses or reorders, or a stale cache of compiled kernels.
    """
    key, start, count = 0x0123456789ABCDEF, 77, 1000
    drawn = torch.empty(count, device=noise.device)
    for distribution, expected in (("gaussian", reference.gaussian), ("rademacher", reference.rademacher)):
        noise.fill_(drawn, key, start, distribution)
        if not np.array_equal(drawn.cpu().numpy(), expected(key, start, count)):
            raise RuntimeError(
                f"the compiled {distribution} noise on {noise.device} differs from its definition: remove the cache of "
                "compiled kernels (justforward/noise/__pycache__, NUMBA_CACHE_DIR, ~/.triton) and try again"
            )


def _each(value: Any, count: int, name: str) -> list[Any]:
    """One number per tensor."""
    if isinstance(value, numbers.Real):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise ValueError(f"{name}: {len(values)} for {count} tensors")
    return values


def _residuals(
    tensors: Sequence[torch.Tensor], rounding: str, residuals: Sequence[torch.Tensor | None] | None
) -> Sequence[torch.Tensor | None]:
    """The residual of every tensor, None where it has none."""
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if rounding != "compensated":
        if residuals is not None:
            raise ValueError(f"residuals are for rounding='compensated', not {rounding!r}")
        return [None] * len(tensors)
    if residuals is None or len(residuals) != len(tensors):
        number = 0 if residuals is None else len(residuals)
        raise ValueError(f"residuals: {number} for {len(tensors)} tensors (None for those of float32)")
    for index, (tensor, residual) in enumerate(zip(tensors, residuals, strict=True)):
        if (residual is None) != (tensor.dtype == torch.float32):
            raise ValueError(f"residuals[{index}] must be None for float32 and a tensor for 16 bits: {tensor.dtype}")
        if residual is not None and not (
            residual.dtype == torch.int16
            and residual.shape == tensor.shape
            and residual.device == tensor.device
            and residual.is_contiguous()
        ):
            raise ValueError(f"residuals[{index}] must be contiguous int16 of {tuple(tensor.shape)} on {tensor.device}")
    _check_distinct([residual for residual in residuals if residual is not None])
    return residuals


def _check_distinct(tensors: Sequence[torch.Tensor]) -> None:
    """Refuse two tensors that begin at one address, as tied weights do: each would add its noise to both."""
    seen: dict[int, int] = {}
    for index, tensor in enumerate(tensors):
        if tensor.numel() and (other := seen.setdefault(tensor.data_ptr(), index)) != index:
            raise ValueError(f"tensors {other} and {index} share their memory (tied weights?): pass one of them")
