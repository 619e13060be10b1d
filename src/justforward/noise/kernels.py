"""The compiled inner loops of the CPU backend: noise.reference, element for element, in numba.

No fastmath, so LLVM may not reorder or fuse anything. The casts keep every intermediate in 32 bits, where numba alone
would widen it; Philox words stay in 64-bit lanes, whose upper halves are garbage that nobody reads: that is the form in
which LLVM needs one vector multiply per product and no shuffles.

numba's cache on disk sees changes of this file only: touch it when a constant of noise.reference changes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from justforward.noise import reference
from justforward.noise.reference import GAUSSIAN_BLOCK, LANES, MINUS_2_LN2, RADEMACHER_BLOCK

FP32, BF16, FP16 = 0, 1, 2
NEAREST, STOCHASTIC, COMPENSATED, FILL = 0, 1, 2, 3

F, I, U, W = np.float32, np.int32, np.uint32, np.uint64  # noqa: E741
HALF, LOW = W(32), W(0xFFFFFFFF)
M0, M1 = W(reference.MULTIPLIERS[0]), W(reference.MULTIPLIERS[1])
K0, K1 = W(reference.WEYL[0]), W(reference.WEYL[1])
Z_DOMAIN, ROUNDING_DOMAIN = W(reference.Z_DOMAIN), W(reference.ROUNDING_DOMAIN)
TOP = U(0x80000000)
CENTRE = I(reference.SQRT_HALF_BITS)
CENTRE_31 = I(reference.SQRT_HALF_BITS + (31 << 23))
MANTISSA = I(reference.MANTISSA_MASK)
Q_SCALE = F(2.0**-32)
L0, L1, L2, L3, L4, L5, L6 = reference.LOG_COEFFICIENTS
C0, C1, C2, C3 = reference.COS_COEFFICIENTS
S0, S1, S2, S3 = reference.SIN_COEFFICIENTS
FP16_NORMAL, FP16_BIAS = reference.FP16_NORMAL, reference.FP16_BIAS

jit = njit(nogil=True, cache=True)


@jit
def run(dst, src, residuals, kind, mode, binary, key, start, keep, scale):
    """One flat piece, from element `start` on: dst <- round(src * keep + scale * z), or round(z) if `mode` is FILL.

    dst and src are the bits of the weights (uint32 or uint16 of one length; they may be the same memory), `kind` their
    dtype; `mode` is the rounding, of which COMPENSATED reads and writes `residuals` (int16), and only NEAREST takes
    FP32; `binary` takes Rademacher signs for z. keep and scale are fp32, key and start uint64.
    """
    words, chance = np.empty(GAUSSIAN_BLOCK, np.uint32), np.empty(GAUSSIAN_BLOCK, np.uint32)
    z = np.empty(GAUSSIAN_BLOCK, np.float32)
    size = dst.size
    done = 0
    drawn = -1
    while done < size:
        first = np.int64(start) + done
        block = first // RADEMACHER_BLOCK if binary else first // GAUSSIAN_BLOCK
        if block != drawn:
            philox(words, block, key, Z_DOMAIN)
            drawn = block
        if binary:
            signs(z, words, U(first // GAUSSIAN_BLOCK % 32))
        else:
            normals(z, words)
        offset = first % GAUSSIAN_BLOCK
        count = min(GAUSSIAN_BLOCK - offset, size - done)
        values, end = z[offset : offset + count], done + count
        if mode == COMPENSATED:
            combine_masters(values, src[done:end], residuals[done:end], kind, keep, scale)
            split_into(dst[done:end], residuals[done:end], values, kind)
        else:
            if mode != FILL:
                combine(values, src[done:end], kind, keep, scale)
            if mode == STOCHASTIC:
                philox(chance, first // GAUSSIAN_BLOCK, key, ROUNDING_DOMAIN)
                round_by_chance(dst[done:end], values, chance[offset : offset + count], kind)
            else:
                round_into(dst[done:end], values, kind)
        done = end


@jit
def run_rows(dst, src, rows, kind, binary, key, scale):
    """Rows of one matrix: dst[u] <- round(src[r] + scale * z), with r = rows[u] and z of that row's own elements.

    dst and src are the bits of the weights, two-dimensional; the other arguments are those of `run`.
    """
    width = src.shape[1]
    none = np.empty(0, np.int16)
    for u in range(rows.size):
        r = rows[u]
        run(dst[u], src[r], none, kind, NEAREST, binary, key, W(r * width), F(1), scale)


@jit
def philox(words, block, key, domain):
    """The 4 x 64 words of one block."""
    base = W(block) * W(LANES)
    for j in range(LANES):
        c0 = base + W(j)
        c1, c2, c3 = c0 >> HALF, domain, W(0)
        k0, k1 = key & LOW, key >> HALF
        for _ in range(10):
            p0, p1 = (c0 & LOW) * M0, (c2 & LOW) * M1
            c0, c1, c2, c3 = (p1 >> HALF) ^ c1 ^ k0, p1, (p0 >> HALF) ^ c3 ^ k1, p0
            k0, k1 = (k0 + K0) & LOW, (k1 + K1) & LOW
        words[j] = U(c0)
        words[LANES + j] = U(c1)
        words[2 * LANES + j] = U(c2)
        words[3 * LANES + j] = U(c3)


@jit
def signs(z, words, bit):
    """One bit of each word to a sign: -1 where it is set, else +1."""
    for j in range(GAUSSIAN_BLOCK):
        z[j] = as_float(U(U(U(words[j] >> bit) << U(31)) | U(0x3F800000)))


@jit
def normals(z, words):
    """One block of words to one block of normals."""
    for j in range(LANES):
        z[j], z[LANES + j] = box_muller(words[j], words[LANES + j])
        z[2 * LANES + j], z[3 * LANES + j] = box_muller(words[2 * LANES + j], words[3 * LANES + j])


@jit
def box_muller(radius_word, angle_word):
    """Two words to two normals, as reference._box_muller."""
    shifted = I(I(as_bits(F(I(radius_word >> U(1))) + F(0.5))) - CENTRE_31)
    exponent = F(I(shifted >> I(23)))
    t = as_float(U(I(I(shifted & MANTISSA) + CENTRE))) - F(1)
    log = (((((L6 * t + L5) * t + L4) * t + L3) * t + L2) * t + L1) * t + L0
    r = math.sqrt(exponent * MINUS_2_LN2 + t * log)

    q = F(I(U(angle_word << U(2)))) * Q_SCALE
    y = q * q
    c = ((C3 * y + C2) * y + C1) * y + C0
    s = q * (((S3 * y + S2) * y + S1) * y + S0)
    first = as_bits(r * (c - s)) ^ U(angle_word & TOP)
    second = as_bits(r * (c + s)) ^ U(U(angle_word << U(1)) & TOP)
    return as_float(U(first)), as_float(U(second))


@jit
def combine(values, src, kind, keep, scale):
    """In fp32: values <- src * keep + scale * values."""
    if kind == FP32:
        for j in range(values.size):
            values[j] = as_float(U(src[j])) * keep + scale * values[j]
    elif kind == BF16:
        for j in range(values.size):
            values[j] = as_float(U(U(src[j]) << U(16))) * keep + scale * values[j]
    else:
        for j in range(values.size):
            values[j] = from_fp16(U(src[j])) * keep + scale * values[j]


@jit
def round_into(dst, values, kind):
    """Write the bits of fp32 values, rounded to the dtype `kind`, into dst."""
    if kind == FP32:
        for j in range(values.size):
            dst[j] = as_bits(values[j])
    elif kind == BF16:
        for j in range(values.size):
            dst[j] = to_bf16(as_bits(values[j]))
    else:
        for j in range(values.size):
            dst[j] = to_fp16(as_bits(values[j]))


@jit
def combine_masters(values, src, residuals, kind, keep, scale):
    """As `combine`, from the fp32 values that 16-bit weights and their residuals stand for."""
    if kind == BF16:
        for j in range(values.size):
            values[j] = as_float(U(U(U(src[j]) << U(16)) + U(I(residuals[j])))) * keep + scale * values[j]
    else:
        for j in range(values.size):
            values[j] = master_of_fp16(U(src[j]), I(residuals[j])) * keep + scale * values[j]


@jit
def round_by_chance(dst, values, words, kind):
    """As `round_into` for 16 bits, stochastically."""
    if kind == BF16:
        for j in range(values.size):
            dst[j] = to_bf16_by_chance(as_bits(values[j]), words[j])
    else:
        for j in range(values.size):
            dst[j] = to_fp16_by_chance(as_bits(values[j]), words[j])


@jit
def split_into(dst, residuals, values, kind):
    """Write fp32 values as 16-bit weights and residuals."""
    if kind == BF16:
        for j in range(values.size):
            dst[j], residuals[j] = split_bf16(as_bits(values[j]))
    else:
        for j in range(values.size):
            dst[j], residuals[j] = split_fp16(as_bits(values[j]))


@jit
def as_bits(x):
    """The bits of an fp32."""
    return F(x).view(np.uint32)


@jit
def as_float(bits):
    """The fp32 of these bits."""
    return U(bits).view(np.float32)


@jit
def from_fp16(half):
    """The exact fp32 of fp16 bits."""
    magnitude = U(half & U(0x7FFF))
    if magnitude < U(0x400):
        bits = as_bits(F(I(magnitude)) * F(2.0**-24))
    elif magnitude < U(0x7C00):
        bits = U(U(magnitude << U(13)) + U(112 << 23))
    else:
        bits = U(U(magnitude << U(13)) + U(224 << 23))
    return as_float(U(bits | U(U(half & U(0x8000)) << U(16))))


@jit
def to_bf16(bits):
    """The bits of an fp32, rounded to the nearest even bf16; a NaN stays one."""
    if U(bits & ~TOP) > U(0x7F800000):
        return U(U(bits >> U(16)) | U(0x40))
    return U(U(bits + U(0x7FFF) + U(U(bits >> U(16)) & U(1))) >> U(16))


@jit
def to_fp16(bits):
    """The bits of an fp32, rounded to the nearest even fp16 (infinity from 65520 on); a NaN stays one."""
    magnitude = U(bits & ~TOP)
    if magnitude > U(0x7F800000):
        half = U(0x7E00)
    elif magnitude >= U(0x477FF000):
        half = U(0x7C00)
    elif magnitude < U(0x38800000):
        # One ulp of fp32 near 1/2 is the step of fp16's subnormals: the addition does the rounding.
        half = U(as_bits(as_float(magnitude) + F(0.5)) - U(0x3F000000))
    else:
        half = U(U(magnitude + U(0xFFF) + U(U(magnitude >> U(13)) & U(1)) - U(112 << 23)) >> U(13))
    return U(half | U(U(bits >> U(16)) & U(0x8000)))


@jit
def to_bf16_by_chance(bits, word):
    """reference.round_stochastic of one fp32."""
    if U(bits & ~TOP) > U(0x7F7F0000):
        return to_bf16(bits)
    return U(U(bits + U(word & U(0xFFFF))) >> U(16))


@jit
def to_fp16_by_chance(bits, word):
    """reference.round_stochastic of one fp32."""
    magnitude = U(bits & ~TOP)
    if magnitude > U(0x477FE000):
        return to_fp16(bits)
    if magnitude < FP16_NORMAL:
        half = U(U(U(I(as_float(magnitude) * F(2.0**45))) + U(word & U(0x1FFFFF))) >> U(21))
    else:
        half = U(U(magnitude + U(word & U(0x1FFF)) - FP16_BIAS) >> U(13))
    return U(half | U(U(bits >> U(16)) & U(0x8000)))


@jit
def split_bf16(bits):
    """reference.round_compensated of one fp32."""
    if U(bits & ~TOP) >= U(0x7F7F8000):
        return to_bf16(bits), I(0)
    half = U(U(bits + U(0x8000)) >> U(16))
    return half, I(U(bits - U(half << U(16))))


@jit
def split_fp16(bits):
    """reference.round_compensated of one fp32."""
    magnitude = U(bits & ~TOP)
    if magnitude >= U(0x477FF000):
        return to_fp16(bits), I(0)
    if magnitude < FP16_NORMAL:
        fixed = as_float(magnitude) * F(2.0**39)
        units = I(fixed)
        units = I(units + I(fixed - F(units) >= F(0.5)))
        half = U(U(units + I(0x4000)) >> U(15))
    else:
        units = I(0)
        half = U(U(magnitude + U(0x1000) - FP16_BIAS) >> U(13))
    coarse = U(magnitude - U(U(half << U(13)) + FP16_BIAS))
    residual = I(units - I(half << U(15))) if half < U(0x400) else I(coarse)
    return U(half | U(U(bits >> U(16)) & U(0x8000))), residual


@jit
def master_of_fp16(half, residual):
    """reference.master of one weight."""
    magnitude = U(half & U(0x7FFF))
    if magnitude < U(0x400):
        bits = as_bits(F(I(I(magnitude << U(15)) + residual)) * F(2.0**-39))
    else:
        bits = U(as_bits(from_fp16(magnitude)) + U(residual))
    return as_float(U(bits | U(U(half & U(0x8000)) << U(16))))
