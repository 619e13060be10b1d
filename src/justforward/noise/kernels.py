"""The compiled inner loops of the CPU backend: noise.reference, element for element, in numba.

No fastmath, so LLVM may not reorder or fuse anything. The casts keep every intermediate in 32 bits, where numba alone
would widen it; Philox words stay in 64-bit lanes, whose upper halves are garbage that nobody reads: that is the form in
which LLVM needs one vector multiply per product and no shuffles.

A launch is a table, one row of 64-bit integers per piece of a tensor; `share` is one thread's part of it.

numba's cache on disk sees changes of this file only: touch it when a constant of noise.reference changes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numba.np import numpy_support

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

# Columns of a launch's table: addresses, counts of elements, fp32 numbers as bits, and flags. MIRROR, RESIDUAL and
# GIVEN are 0 where there is none.
DST, MIRROR, SRC, RESIDUAL, GIVEN, SIZE, KEY, START, KEEP, SCALE, KIND, MODE, BINARY = range(13)
COLUMNS = 13

jit = njit(nogil=True, cache=True)
carray: Any = numpy_support.carray
omp_get_thread_num = types.ExternalFunction("omp_get_thread_num", types.int32())
omp_get_num_threads = types.ExternalFunction("omp_get_num_threads", types.int32())


def on_team(table):
    """What each thread of an OpenMP team runs; compiled as a C function of the address of a table.

    The first word is the number of rows, which follow.
    """
    count = np.int64(carray(table, (1,), np.uint64)[0])
    rows = carray(table, (1 + count * COLUMNS,), np.uint64)[1:].reshape(count, COLUMNS)
    share(rows, omp_get_thread_num(), omp_get_num_threads())


def _pointer(typing, address):
    """An address as a pointer to anything."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.uint64), generate


pointer: Any = intrinsic(_pointer)


@jit
def share(table, me, team):
    """Rows me, me + team, me + 2 team, ... of a launch's table."""
    for i in range(me, len(table), team):
        row = table[i]
        n = np.int64(row[SIZE])
        mirrored = n if row[MIRROR] != 0 else 0
        left = n if row[RESIDUAL] != 0 else 0
        residuals = carray(pointer(row[RESIDUAL]), (left,), np.int16)
        given = carray(pointer(row[GIVEN]), (n if row[GIVEN] != 0 else 0,), np.float32)
        kind, mode, binary = np.int64(row[KIND]), np.int64(row[MODE]), row[BINARY] != 0
        apart = row[DST] != row[SRC]
        numbers = row[KEY], row[START], as_float(U(row[KEEP])), as_float(U(row[SCALE])), apart
        if kind == FP32:
            dst, src = carray(pointer(row[DST]), (n,), np.uint32), carray(pointer(row[SRC]), (n,), np.uint32)
            mirror = carray(pointer(row[MIRROR]), (mirrored,), np.uint32)
            run(dst, mirror, src, residuals, given, kind, mode, binary, *numbers)
        else:
            dst2, src2 = carray(pointer(row[DST]), (n,), np.uint16), carray(pointer(row[SRC]), (n,), np.uint16)
            mirror2 = carray(pointer(row[MIRROR]), (mirrored,), np.uint16)
            run(dst2, mirror2, src2, residuals, given, kind, mode, binary, *numbers)


@jit
def run(dst, mirror, src, residuals, given, kind, mode, binary, key, start, keep, scale, apart):
    """One flat piece, from element `start` on: dst <- round(src * keep + scale * z), or round(z) if `mode` is FILL.

    dst and src are the bits of the weights (uint32 or uint16 of one length), not the same memory if `apart`: then one
    loop does for all, which LLVM would not make vectors of where it finds them the same. `kind` is their dtype; `mode`
    is the rounding, of which COMPENSATED reads and writes `residuals` (int16), and only NEAREST takes FP32; `binary`
    takes Rademacher signs for z. keep and scale are fp32, key and start uint64. mirror, where it is not empty, gets
    round(src * keep - scale * z), to nearest, from the same draw. given (fp32), where it is not empty, is taken
    for z; then only the random bits of rounding are drawn.
    """
    words, chance = np.empty(GAUSSIAN_BLOCK, np.uint32), np.empty(GAUSSIAN_BLOCK, np.uint32)
    z = np.empty(GAUSSIAN_BLOCK, np.float32)
    size = dst.size
    done = 0
    drawn = -1
    while done < size:
        first = np.int64(start) + done
        block = first // RADEMACHER_BLOCK if binary else first // GAUSSIAN_BLOCK
        if block != drawn and not given.size:
            philox(words, block, key, Z_DOMAIN)
            drawn = block
        offset = first % GAUSSIAN_BLOCK
        count = min(GAUSSIAN_BLOCK - offset, size - done)
        values, end = z[offset : offset + count], done + count
        if given.size:
            values[:] = given[done:end]
        elif binary:
            signs(z, words, U(first // GAUSSIAN_BLOCK % 32))
        else:
            normals(z, words)
        if mirror.size:
            write(mirror[done:end], values, src[done:end], kind, keep, -scale)
        if mode == NEAREST and apart:
            write(dst[done:end], values, src[done:end], kind, keep, scale)
        elif mode == NEAREST:
            combine(values, src[done:end], kind, keep, scale)
            round_into(dst[done:end], values, kind)
        elif mode == COMPENSATED:
            combine_masters(values, src[done:end], residuals[done:end], kind, keep, scale)
            split_into(dst[done:end], residuals[done:end], values, kind)
        elif mode == STOCHASTIC:
            combine(values, src[done:end], kind, keep, scale)
            if binary or given.size:
                philox(chance, first // GAUSSIAN_BLOCK, key, ROUNDING_DOMAIN)
            else:
                spare_bits(chance, words)
            round_by_chance(dst[done:end], values, chance[offset : offset + count], kind)
        else:
            round_into(dst[done:end], values, kind)
        done = end


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
def spare_bits(chance, words):
    """Gaussian words to words whose lower halves round, as reference.rounding_words."""
    for j in range(LANES):
        chance[j] = words[j] ^ words[LANES + j]
        chance[LANES + j] = words[LANES + j]
        chance[2 * LANES + j] = words[2 * LANES + j] ^ words[3 * LANES + j]
        chance[3 * LANES + j] = words[3 * LANES + j]


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
def write(dst, z, src, kind, keep, scale):
    """Into dst, not the same memory as src: src * keep + scale * z, in fp32, rounded to nearest."""
    if kind == FP32:
        for j in range(z.size):
            dst[j] = as_bits(as_float(U(src[j])) * keep + scale * z[j])
    elif kind == BF16:
        for j in range(z.size):
            dst[j] = to_bf16(as_bits(as_float(U(U(src[j]) << U(16))) * keep + scale * z[j]))
    else:
        for j in range(z.size):
            dst[j] = to_fp16(as_bits(from_fp16(U(src[j])) * keep + scale * z[j]))


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
        half = U(U(U(I(as_float(magnitude) * F(2.0**40))) + U(word & U(0xFFFF))) >> U(16))
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
