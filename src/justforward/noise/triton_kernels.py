"""noise.reference, element for element, as Triton kernels: of one tensor, of rows of a table, of many small tensors.

To be compiled without fused multiply-adds; square roots are correctly rounded, and bf16 is rounded in integers.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from justforward.noise import reference

MODES = {"nearest": 0, "stochastic": 1, "compensated": 2, "fill": 3}
NEAREST = tl.constexpr(MODES["nearest"])
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


@triton.jit
def _blocks(
    dst, mirror, src, residuals, given, size, program, block, shift, key_low, key_high, keep, scale,
    MODE: tl.constexpr, BINARY: tl.constexpr, MIRROR: tl.constexpr, GIVEN: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """A program's BLOCKS blocks of 256 elements, of those from the `shift`-th of block `block` on."""
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


@triton.jit
def _sign_blocks(
    dst, mirror, src, residuals, size, program, block, shift, key_low, key_high, keep, scale,
    MODE: tl.constexpr, MIRROR: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Of a program's BLOCKS Rademacher blocks of 8192, those elements whose signs are BITS neighbours in their words.

    The words of a block's 64 counters are drawn once for all these bits.
    """
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


@triton.jit
def _of_row(row):
    """The words of a key, low and high, and a scale: recording.Launches."""
    key, scale = tl.load(row), tl.load(row + 1).to(tl.int32).to(tl.float32, bitcast=True)
    return key.to(tl.int32), (key >> 32).to(tl.int32), scale


@triton.jit(do_not_specialize=["block", "key_low", "key_high"])
def one(
    dst, mirror, src, residuals, given, row, size, block, shift, key_low, key_high, keep, scale, MODE: tl.constexpr,
    BINARY: tl.constexpr, MIRROR: tl.constexpr, GIVEN: tl.constexpr, WIDE: tl.constexpr, RECORDED: tl.constexpr,
    BLOCKS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """A tensor. Triton is told what of `size`, `shift` and addresses 16 divides: it makes wide loads of that.

    RECORDED: key and scale are those of `row`.
    """
    if RECORDED:
        key_low, key_high, scale = _of_row(row)
    program = tl.program_id(0)
    if WIDE:
        program = program.to(tl.int64)
    if BINARY:
        _sign_blocks(
            dst, mirror, src, residuals, size, program, block, shift, key_low, key_high, keep, scale,
            MODE, MIRROR, BLOCKS, BITS,
        )  # fmt: skip
    else:
        _blocks(
            dst, mirror, src, residuals, given, size, program, block, shift, key_low, key_high, keep, scale,
            MODE, False, MIRROR, GIVEN, BLOCKS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["key_low", "key_high"])
def rows_of(
    dst, mirror, src, rows, row, size, key_low, key_high, scale,
    BINARY: tl.constexpr, MIRROR: tl.constexpr, RECORDED: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Rows of a table, of `size` elements each: the grid's first axis counts them, its second the blocks of each."""
    if RECORDED:
        key_low, key_high, scale = _of_row(row)
    u = tl.program_id(0).to(tl.int64)
    begin = tl.load(rows + u) * size
    dst += u * size
    if MIRROR:
        mirror += u * size
    block, shift = begin // GAUSSIAN_BLOCK, (begin % GAUSSIAN_BLOCK).to(tl.int32)
    _blocks(
        dst, mirror, src + begin, None, None, size, tl.program_id(1), block, shift, key_low, key_high, 1.0, scale,
        NEAREST, BINARY, MIRROR, False, BLOCKS,
    )  # fmt: skip


COLUMNS = 10
"""Of a tensor's row in the table of `many`: addresses of what is written, of its mirror, of what is read and of its
residuals; size, block, shift, first program, key, and the bits of `keep` above those of `scale`."""
_COLUMNS = tl.constexpr(COLUMNS)


@triton.jit
def many(
    table, owners, DTYPE: tl.constexpr, MODE: tl.constexpr, BINARY: tl.constexpr, MIRROR: tl.constexpr,
    EVEN: tl.constexpr, BLOCKS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Tensors of one dtype, each a row of `table`; `owners` has the row of each program.

    EVEN: 16 divides every size, shift and address.
    """
    row = table + tl.load(owners + tl.program_id(0)) * _COLUMNS
    dst = tl.load(row).to(tl.pointer_type(DTYPE))
    mirror = tl.load(row + 1).to(tl.pointer_type(DTYPE))
    src = tl.load(row + 2).to(tl.pointer_type(DTYPE))
    residuals = tl.load(row + 3).to(tl.pointer_type(tl.int16))
    size, block, shift = tl.load(row + 4).to(tl.int32), tl.load(row + 5), tl.load(row + 6).to(tl.int32)
    if EVEN:
        dst, mirror, src = tl.multiple_of(dst, 16), tl.multiple_of(mirror, 16), tl.multiple_of(src, 16)
        residuals = tl.multiple_of(residuals, 16)
        size, shift = tl.multiple_of(size, 16), tl.multiple_of(shift, 16)
    program = tl.program_id(0) - tl.load(row + 7).to(tl.int32)
    key, bits = tl.load(row + 8), tl.load(row + 9)
    low, high = key.to(tl.int32), (key >> 32).to(tl.int32)
    scale, keep = bits.to(tl.int32).to(tl.float32, bitcast=True), (bits >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    if BINARY:
        _sign_blocks(
            dst, mirror, src, residuals, size, program, block, shift, low, high, keep, scale, MODE, MIRROR, BLOCKS, BITS
        )
    else:
        _blocks(
            dst, mirror, src, residuals, None, size, program, block, shift, low, high, keep, scale,
            MODE, False, MIRROR, False, BLOCKS,
        )  # fmt: skip
