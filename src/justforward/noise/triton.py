"""The GPU backend: noise.reference, element for element, as one Triton kernel; one launch of it per tensor.

Compiled without fused multiply-adds and with the correctly rounded square root, and with bf16 rounded in integers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from justforward.noise import reference
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

# Blocks of 64 counters to one program; of signs, and the bits of their words.
BLOCKS = 16
SIGN_BLOCKS, SIGN_BITS = 16, 4

MODES = {"nearest": 0, "stochastic": 1, "compensated": 2, "fill": 3}
STOCHASTIC = tl.constexpr(MODES["stochastic"])
COMPENSATED = tl.constexpr(MODES["compensated"])
FILL = tl.constexpr(MODES["fill"])

ROUNDING_DOMAIN = tl.constexpr(reference.ROUNDING_DOMAIN)
FP16_NORMAL = tl.constexpr(int(reference.FP16_NORMAL))
FP16_BIAS = tl.constexpr(int(reference.FP16_BIAS))
LANES = tl.constexpr(reference.LANES)
GAUSSIAN_BLOCK = tl.constexpr(reference.GAUSSIAN_BLOCK)
CENTRE = tl.constexpr(reference.SQRT_HALF_BITS)
CENTRE_31 = tl.constexpr(reference.SQRT_HALF_BITS + (31 << 23))
MANTISSA = tl.constexpr(reference.MANTISSA_MASK)
MINUS_2_LN2 = tl.constexpr(float(reference.MINUS_2_LN2))
LOG = tl.constexpr(tuple(float(c) for c in reference.LOG_COEFFICIENTS))
COS = tl.constexpr(tuple(float(c) for c in reference.COS_COEFFICIENTS))
SIN = tl.constexpr(tuple(float(c) for c in reference.SIN_COEFFICIENTS))


@triton.jit
def _box_muller(radius_word, angle_word):
    v = (radius_word >> 1).to(tl.int32).to(tl.float32) + 0.5
    shifted = v.to(tl.int32, bitcast=True) - CENTRE_31
    exponent = (shifted >> 23).to(tl.float32)
    t = ((shifted & MANTISSA) + CENTRE).to(tl.float32, bitcast=True) - 1.0
    log = (((((LOG[6] * t + LOG[5]) * t + LOG[4]) * t + LOG[3]) * t + LOG[2]) * t + LOG[1]) * t + LOG[0]
    r = tl.sqrt_rn(exponent * MINUS_2_LN2 + t * log)
    q = (angle_word << 2).to(tl.int32, bitcast=True).to(tl.float32) * (1.0 / 4294967296.0)
    y = q * q
    c = ((COS[3] * y + COS[2]) * y + COS[1]) * y + COS[0]
    s = q * (((SIN[3] * y + SIN[2]) * y + SIN[1]) * y + SIN[0])
    return _flip(r * (c - s), angle_word), _flip(r * (c + s), angle_word << 1)


@triton.jit
def _sign(word):
    """-1 where the top bit is set, else 1."""
    return ((word & 0x80000000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _flip(x, word):
    return (x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _write(
    dst, mirror, src, residuals, given, at, size, z, word, keep, scale,
    MODE: tl.constexpr, MIRROR: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    inside = (at >= 0) & (at < size)
    if GIVEN:
        z = tl.load(given + at, mask=inside, other=0.0)
    dtype = dst.dtype.element_ty
    if MODE == FILL:
        value = z
    else:
        weight = tl.load(src + at, mask=inside, other=0.0)
        value = weight.to(tl.float32)
        if MIRROR:
            opposite = value * keep - scale * z
            if dtype != tl.float32:
                opposite = _nearest(opposite, dtype).to(tl.uint16).to(dtype, bitcast=True)
            tl.store(mirror + at, opposite, mask=inside)
        if MODE == COMPENSATED:
            residual = tl.load(residuals + at, mask=inside, other=0).to(tl.int32)
            value = _master(weight.to(tl.uint16, bitcast=True).to(tl.uint32), value, residual, dtype)
        value = value * keep + scale * z
    if dtype == tl.float32:
        tl.store(dst + at, value, mask=inside)
    else:
        half = _nearest(value, dtype)
        if MODE == STOCHASTIC:
            half = _by_chance(value, half, word, dtype)
        if MODE == COMPENSATED:
            half, residual = _split(value, half, dtype)
            tl.store(residuals + at, residual.to(tl.int16), mask=inside)
        tl.store(dst + at, half.to(tl.uint16).to(dtype, bitcast=True), mask=inside)


@triton.jit
def _nearest(value, dtype: tl.constexpr):
    """The bits of a 16-bit dtype in 32; likewise in the functions below."""
    if dtype == tl.float16:
        half = value.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
    else:
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        half = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, (bits >> 16) | 0x40, rounded)
    return half


@triton.jit
def _by_chance(value, nearest, word, dtype: tl.constexpr):
    """reference.round_stochastic."""
    bits = value.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if dtype == tl.float16:
        small = magnitude < FP16_NORMAL
        fixed = tl.where(small, magnitude, 0).to(tl.float32, bitcast=True) * 1099511627776.0
        subnormal = (fixed.to(tl.int32).to(tl.uint32, bitcast=True) + (word & 0xFFFF)) >> 16
        half = tl.where(small, subnormal, (magnitude + (word & 0x1FFF) - FP16_BIAS) >> 13)
        beyond = magnitude > 0x477FE000
    else:
        half = (magnitude + (word & 0xFFFF)) >> 16
        beyond = magnitude > 0x7F7F0000
    return tl.where(beyond, nearest, half | ((bits >> 16) & 0x8000))


@triton.jit
def _split(value, nearest, dtype: tl.constexpr):
    """reference.round_compensated."""
    bits = value.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if dtype == tl.float16:
        small = magnitude < FP16_NORMAL
        fixed = tl.where(small, magnitude, 0).to(tl.float32, bitcast=True) * 549755813888.0
        units = fixed.to(tl.int32)
        units += (fixed - units.to(tl.float32) >= 0.5).to(tl.int32)
        units = units.to(tl.uint32, bitcast=True)
        half = tl.where(small, (units + 0x4000) >> 15, (magnitude + 0x1000 - FP16_BIAS) >> 13)
        residual = tl.where(half < 0x400, units - (half << 15), magnitude - ((half << 13) + FP16_BIAS))
        finite = magnitude < 0x477FF000
    else:
        half = (magnitude + 0x8000) >> 16
        residual = magnitude - (half << 16)
        finite = magnitude < 0x7F7F8000
    half = tl.where(finite, half | ((bits >> 16) & 0x8000), nearest)
    return half, tl.where(finite, residual.to(tl.int32, bitcast=True), 0)


@triton.jit
def _master(half, weight, residual, dtype: tl.constexpr):
    """reference.master of 16 bits, whose fp32 value is `weight`."""
    bits = weight.to(tl.uint32, bitcast=True) + residual.to(tl.uint32, bitcast=True)
    if dtype == tl.float16:
        magnitude = half & 0x7FFF
        units = (magnitude << 15).to(tl.int32, bitcast=True) + residual
        fine = (units.to(tl.float32) * (1.0 / 549755813888.0)).to(tl.uint32, bitcast=True)
        bits = tl.where(magnitude < 0x400, fine | ((half & 0x8000) << 16), bits)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _philox(counter, domain, key_low, key_high):
    """Four words for each 64-bit counter."""
    zero = counter.to(tl.uint32) * 0
    k0 = zero + key_low.to(tl.uint32, bitcast=True)
    k1 = zero + key_high.to(tl.uint32, bitcast=True)
    return tl.philox_impl(counter.to(tl.uint32), (counter >> 32).to(tl.uint32), zero + domain, zero, k0, k1, 10)


@triton.jit(do_not_specialize=["block", "key_low", "key_high"])
def _run(
    dst, mirror, src, residuals, given, rows, size, block, shift, key_low, key_high, keep, scale, MODE: tl.constexpr,
    BINARY: tl.constexpr, ROWS: tl.constexpr, MIRROR: tl.constexpr, GIVEN: tl.constexpr, WIDE: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Elements of BLOCKS blocks of 256, from the `shift`-th of block `block` on.

    With ROWS, `size` is the length of a row; the grid's first axis counts the elements of `rows`, its second the
    blocks of each. Triton is told what of `size`, `shift` and addresses 16 divides: it makes wide loads of that.
    """
    if ROWS:
        u = tl.program_id(0).to(tl.int64)
        begin = tl.load(rows + u) * size
        src += begin
        dst += u * size
        if MIRROR:
            mirror += u * size
        block = begin // GAUSSIAN_BLOCK
        shift = (begin % GAUSSIAN_BLOCK).to(tl.int32)
    program = tl.program_id(1 if ROWS else 0)
    if WIDE:
        program = program.to(tl.int64)
    row = tl.arange(0, BLOCKS * LANES)
    lane = row % LANES
    own = program * BLOCKS + row // LANES
    at = own * GAUSSIAN_BLOCK + lane - shift
    own = own.to(tl.int64) + block
    w0, w1, w2, w3 = _philox((own // 32 if BINARY else own) * LANES + lane, 0, key_low, key_high)
    r0, r1, r2, r3 = w0 ^ w1, w1, w2 ^ w3, w3
    if GIVEN and MODE == STOCHASTIC:
        r0, r1, r2, r3 = _philox(own * LANES + lane, ROUNDING_DOMAIN, key_low, key_high)
    if BINARY:
        left = 31 - (own % 32).to(tl.uint32)
        z0, z1, z2, z3 = _sign(w0 << left), _sign(w1 << left), _sign(w2 << left), _sign(w3 << left)
    else:
        z0, z1 = _box_muller(w0, w1)
        z2, z3 = _box_muller(w2, w3)
    _write(dst, mirror, src, residuals, given, at, size, z0, r0, keep, scale, MODE, MIRROR, GIVEN)
    _write(dst, mirror, src, residuals, given, at + LANES, size, z1, r1, keep, scale, MODE, MIRROR, GIVEN)
    _write(dst, mirror, src, residuals, given, at + 2 * LANES, size, z2, r2, keep, scale, MODE, MIRROR, GIVEN)
    _write(dst, mirror, src, residuals, given, at + 3 * LANES, size, z3, r3, keep, scale, MODE, MIRROR, GIVEN)


@triton.jit(do_not_specialize=["block", "key_low", "key_high"])
def _signs(
    dst, mirror, src, residuals, size, block, shift, key_low, key_high, keep, scale, MODE: tl.constexpr,
    MIRROR: tl.constexpr, WIDE: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Of BLOCKS Rademacher blocks of 8192, those elements whose signs are BITS neighbouring bits of the words.

    The words of a block's 64 counters are drawn once for all these bits.
    """
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    first = program % (32 // BITS) * BITS
    row = tl.arange(0, BLOCKS * LANES)
    lane = row % LANES
    own = program // (32 // BITS) * BLOCKS + row // LANES
    begin = own * (32 * GAUSSIAN_BLOCK) + lane - shift
    own = own.to(tl.int64) + block
    w0, w1, w2, w3 = _philox(own * LANES + lane, 0, key_low, key_high)
    r0, r1, r2, r3 = w0, w1, w2, w3
    for i in tl.static_range(BITS):
        bit = first + i
        at = begin + bit * GAUSSIAN_BLOCK
        if MODE == STOCHASTIC:
            r0, r1, r2, r3 = _philox((own * 32 + bit) * LANES + lane, ROUNDING_DOMAIN, key_low, key_high)
        left = (31 - bit).to(tl.uint32)
        z0, z1, z2, z3 = _sign(w0 << left), _sign(w1 << left), _sign(w2 << left), _sign(w3 << left)
        _write(dst, mirror, src, residuals, None, at, size, z0, r0, keep, scale, MODE, MIRROR, False)
        _write(dst, mirror, src, residuals, None, at + LANES, size, z1, r1, keep, scale, MODE, MIRROR, False)
        _write(dst, mirror, src, residuals, None, at + 2 * LANES, size, z2, r2, keep, scale, MODE, MIRROR, False)
        _write(dst, mirror, src, residuals, None, at + 3 * LANES, size, z3, r3, keep, scale, MODE, MIRROR, False)


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
        """See `NoiseBackend.add_`; one launch per tensor."""
        binary = is_binary(distribution)
        todo = updates(self.device, tensors, keys, scale, decay, starts, rounding, residuals)
        for u in todo:
            flat = u.tensor.detach().contiguous()
            mode = "nearest" if flat.dtype == torch.float32 else rounding
            _launch(flat, flat, u.key, u.start, u.scale, u.keep, binary, mode=mode, residual=u.residual)
            if not u.tensor.is_contiguous():
                u.tensor.detach().copy_(flat)
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
        mode = "nearest" if flat.dtype == torch.float32 else rounding
        _launch(flat, flat, key, start, 1.0, u.keep, False, mode=mode, residual=residual, given=values.detach())
        if not tensor.is_contiguous():
            tensor.detach().copy_(flat)
        mark_written([tensor] if residual is None else [tensor, residual])

    def fill_(self, tensor: torch.Tensor, key: int, start: int = 0, distribution: str = "gaussian") -> None:
        """See `NoiseBackend.fill_`."""
        binary = is_binary(distribution)
        check_draw(self.device, tensor, key, start)
        flat = tensor.detach().contiguous()
        _launch(flat, flat, key, start, 0.0, 1.0, binary, mode="fill")
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
        """See `NoiseBackend.perturb_many`; one launch per tensor."""
        binary = is_binary(distribution)
        for c in copies(self.device, outs, tensors, keys, scale, starts, mirrors):
            _launch(c.out.detach(), c.tensor.detach(), c.key, c.start, c.scale, 1.0, binary, mirror=c.mirror)
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
        _launch(out.detach(), tensor.detach(), key, 0, scale, 1.0, binary, rows=rows.contiguous(), mirror=mirror)
        mark_written([out] if mirror is None else [out, mirror])


@functools.cache
def load() -> TritonNoise:
    """The backend for CUDA tensors, after a check of its bits; RuntimeError where they are wrong."""
    noise = TritonNoise()
    check_definition(noise)
    return noise


def _launch(
    dst: torch.Tensor,
    src: torch.Tensor,
    key: int,
    start: int,
    scale: float,
    keep: float,
    binary: bool,
    *,
    mode: str = "nearest",
    residual: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    mirror: torch.Tensor | None = None,
    given: torch.Tensor | None = None,
) -> None:
    if dst.numel() == 0:
        return
    low, high = np.array([key], dtype="<u8").view("<i4").tolist()
    size = dst.numel() if rows is None else dst.shape[1]
    block, per = reference.GAUSSIAN_BLOCK, BLOCKS
    if signs := binary and rows is None:
        block, per = 32 * block, SIGN_BLOCKS
    # A row may begin anywhere in a block: room for the worst case.
    blocks = (start % block + size - 1) // block + 1 if rows is None else (size - 2) // block + 2
    programs, wide = triton.cdiv(blocks, per), (blocks + per) * block >= 2**31
    where = [size, start // block, start % block, low, high, float(np.float32(keep)), float(np.float32(scale))]
    sources = [dst, None if mirror is None else mirror.detach(), src, residual]
    options = {"MODE": MODES[mode], "MIRROR": mirror is not None, "WIDE": wide, "enable_fp_fusion": False}
    with torch.cuda.device(dst.device) if dst.is_cuda else torch.no_grad():
        if signs:
            grid = (programs * (32 // SIGN_BITS),)
            _signs[grid](*sources, *where, BLOCKS=per, BITS=SIGN_BITS, **options)  # pyright: ignore[reportIndexIssue]
        else:
            grid = (programs,) if rows is None else (rows.numel(), programs)
            facts = {"BINARY": binary, "ROWS": rows is not None, "GIVEN": given is not None, "BLOCKS": per}
            _run[grid](*sources, given, rows, *where, **facts, **options)  # pyright: ignore[reportIndexIssue]
