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

F, I, U, W = np.float32, np.int32, np.uint32, np.uint64  # noqa: E741
HALF, LOW = W(32), W(0xFFFFFFFF)
M0, M1 = W(reference.MULTIPLIERS[0]), W(reference.MULTIPLIERS[1])
K0, K1 = W(reference.WEYL[0]), W(reference.WEYL[1])
TOP = U(0x80000000)
CENTRE = I(reference.SQRT_HALF_BITS)
CENTRE_31 = I(reference.SQRT_HALF_BITS + (31 << 23))
MANTISSA = I(reference.MANTISSA_MASK)
Q_SCALE = F(2.0**-32)
L0, L1, L2, L3, L4, L5, L6 = reference.LOG_COEFFICIENTS
C0, C1, C2, C3 = reference.COS_COEFFICIENTS
S0, S1, S2, S3 = reference.SIN_COEFFICIENTS

jit = njit(nogil=True, cache=True)


@jit
def run(dst, src, kind, fill, binary, key, start, keep, scale):
    """One flat piece, from element `start` on: dst <- round(src * keep + scale * z), or round(z) with `fill`.

    dst and src are the bits of the weights (uint32 or uint16 of one length; they may be the same memory), `kind` their
    dtype; `binary` takes Rademacher signs for z. keep and scale are fp32, key and start uint64.
    """
    words = np.empty(GAUSSIAN_BLOCK, np.uint32)
    z = np.empty(GAUSSIAN_BLOCK, np.float32)
    size = dst.size
    done = 0
    drawn = -1
    while done < size:
        first = np.int64(start) + done
        block = first // RADEMACHER_BLOCK if binary else first // GAUSSIAN_BLOCK
        if block != drawn:
            philox(words, block, key)
            drawn = block
        if binary:
            signs(z, words, U(first // GAUSSIAN_BLOCK % 32))
        else:
            normals(z, words)
        offset = first % GAUSSIAN_BLOCK
        count = min(GAUSSIAN_BLOCK - offset, size - done)
        values = z[offset : offset + count]
        if not fill:
            combine(values, src[done : done + count], kind, keep, scale)
        round_into(dst[done : done + count], values, kind)
        done += count


@jit
def run_rows(dst, src, rows, kind, binary, key, scale):
    """Rows of one matrix: dst[u] <- round(src[r] + scale * z), with r = rows[u] and z of that row's own elements.

    dst and src are the bits of the weights, two-dimensional; the other arguments are those of `run`.
    """
    width = src.shape[1]
    for u in range(rows.size):
        r = rows[u]
        run(dst[u], src[r], kind, False, binary, key, W(r * width), F(1), scale)


@jit
def philox(words, block, key):
    """The 4 x 64 words of one block."""
    base = W(block) * W(LANES)
    for j in range(LANES):
        c0 = base + W(j)
        c1, c2, c3 = c0 >> HALF, W(0), W(0)
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
