"""The definition of the noise: z as a pure function of (seed, step, sample, name, element index), in numpy.

Every backend must give these bits. The words are Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011): a 64-bit key and a 64-bit counter (the two upper counter words are 0) give four 32-bit words.

Gaussian, element i of a tensor in row-major order: block b = i // 256, word k = (i // 64) % 4, lane j = i % 64, counter
64*b + j. The words 0 and 1 of a counter make the normals of k = 0 and 1, the words 2 and 3 those of k = 2 and 3.

Rademacher, element i: block b = i // 8192, bit s = (i // 256) % 32, and word k, lane j as above, counter 64*b + j. The
element is -1 where bit s (0 is the lowest) of that word is set, else +1.

The normals come from Box-Muller in fp32, in nothing but +, *, sqrt, integer-to-float conversion and shifts, each
rounded to nearest even on its own: no fused multiply-add and no libm, so all devices can agree on every bit.

Updates of 16-bit weights are smaller than the step of their grid, and rounding to nearest loses them. Two roundings do
not: a stochastic one, unbiased, and a compensated one, which keeps beside the weight what was lost (below).
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np

# Changes whenever any bit of any draw changes; the trajectory log records it.
NOISE_VERSION = "philox4x32-10/box-muller/1"

# The same for the stochastic and the compensated rounding.
ROUNDING_VERSION = "stochastic/compensated-int16/2"

LANES = 64
GAUSSIAN_BLOCK = 4 * LANES
RADEMACHER_BLOCK = 32 * GAUSSIAN_BLOCK
DISTRIBUTIONS = ("gaussian", "rademacher")
ROUNDINGS = ("nearest", "stochastic", "compensated")

# The third word of the counter: what the words are for.
Z_DOMAIN, ROUNDING_DOMAIN = 0, 1

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

# Bits of fp32 sqrt(1/2): subtracting them makes the exponent field count from a mantissa in [sqrt(1/2), sqrt(2)).
SQRT_HALF_BITS = 0x3F3504F3
MANTISSA_MASK = 0x7FFFFF
MINUS_2_LN2 = np.float32(-1.3862943649291992)
# Remez fits, lowest power first, rounded to fp32. -2 ln(1 + t) / t on [sqrt(1/2) - 1, sqrt(2) - 1], error 2.3e-6 of 2.
LOG_COEFFICIENTS = tuple(
    np.float32(c)
    for c in (
        -2.0000016689300537,
        1.0000280141830444,
        -0.6663205623626709,
        0.49793586134910583,
        -0.4090951085090637,
        0.3756546080112457,
        -0.24421964585781097,
    )
)
# cos(pi q / 2) / sqrt(2) and sin(pi q / 2) / (sqrt(2) q) in q * q, for q in [-1/2, 1/2]; errors 2.0e-8 and 3.4e-9.
COS_COEFFICIENTS = tuple(
    np.float32(c) for c in (0.7071067690849304, -0.8723555207252502, 0.1793213188648224, -0.014430884271860123)
)
SIN_COEFFICIENTS = tuple(
    np.float32(c) for c in (1.1107207536697388, -0.45676514506340027, 0.05634243041276932, -0.003254230599850416)
)

# fp32 bits of fp16's smallest normal number, and what its exponent's bias differs by.
FP16_NORMAL, FP16_BIAS = np.uint32(0x38800000), np.uint32(112 << 23)


def noise_key(seed: int, step: int, sample: int, name: str) -> int:
    """The 64-bit Philox key of one parameter's draw.

    BLAKE2b with an 8-byte digest, read as a little-endian number, of the three numbers as little-endian signed 64-bit
    integers followed by the name in UTF-8. Raises ValueError where a number does not fit.
    """
    try:
        numbers = struct.pack("<qqq", seed, step, sample)
    except struct.error as error:
        raise ValueError(
            f"seed, step and sample must be integers of 64 bits with a sign, got {seed!r}, {step!r}, {sample!r}"
        ) from error
    return int.from_bytes(hashlib.blake2b(numbers + name.encode(), digest_size=8).digest(), "little")


def philox4x32(counter: np.ndarray, key: tuple[int, int], rounds: int = 10) -> np.ndarray:
    """Philox4x32 of `counter` (four uint32 words along the first axis) under a key of two 32-bit words.

    Returns uint32 of the counter's shape.
    """
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint32) for word in counter)
    k0, k1 = key
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(rounds):
        p0 = c0.astype(np.uint64) * np.uint64(MULTIPLIERS[0])
        p1 = c2.astype(np.uint64) * np.uint64(MULTIPLIERS[1])
        c0 = (p1 >> half).astype(np.uint32) ^ c1 ^ np.uint32(k0)
        c2 = (p0 >> half).astype(np.uint32) ^ c3 ^ np.uint32(k1)
        c1, c3 = (p1 & low).astype(np.uint32), (p0 & low).astype(np.uint32)
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def gaussian(key: int, start: int, count: int) -> np.ndarray:
    """Standard normals of the elements start .. start + count - 1 under `key`; fp32, shape (count,).

    |z| ends at 6.6: the radius has 31 random bits.
    """
    first = start // GAUSSIAN_BLOCK
    words = _block_words(key, first, -(-(start + count) // GAUSSIAN_BLOCK))
    z = np.empty(words.shape, dtype=np.float32)
    z[:, 0], z[:, 1] = _box_muller(words[:, 0], words[:, 1])
    z[:, 2], z[:, 3] = _box_muller(words[:, 2], words[:, 3])
    offset = start - first * GAUSSIAN_BLOCK
    return z.reshape(-1)[offset : offset + count]


def rademacher(key: int, start: int, count: int) -> np.ndarray:
    """Fair signs, +1 or -1, of the elements start .. start + count - 1 under `key`; fp32, shape (count,)."""
    first = start // RADEMACHER_BLOCK
    words = _block_words(key, first, -(-(start + count) // RADEMACHER_BLOCK))
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)[:, None, None]) & np.uint32(1)
    offset = start - first * RADEMACHER_BLOCK
    return np.float32(1) - np.float32(2) * bits.reshape(-1)[offset : offset + count].astype(np.float32)


def rounding_words(key: int, start: int, count: int, distribution: str = "gaussian") -> np.ndarray:
    """What `round_stochastic` takes: a uint32 for each of the elements start .. start + count - 1, shape (count,).

    Their lower 16 bits are used. Gaussian: words that the draw has made already, whose lower halves z hardly depends
    on: word k of the counter for odd k, and for even k that word exclusive-or word k + 1, because the radius in the
    farthest tail, |z| > 4.5, does depend on the lower half of its own. Rademacher: words in the Gaussian's order under
    counters of their own, whose third word is 1.
    """
    first = start // GAUSSIAN_BLOCK
    domain = ROUNDING_DOMAIN if distribution == "rademacher" else Z_DOMAIN
    words = _block_words(key, first, -(-(start + count) // GAUSSIAN_BLOCK), domain).copy()
    if distribution != "rademacher":
        words[:, 0::2] ^= words[:, 1::2]
    offset = start - first * GAUSSIAN_BLOCK
    return words.reshape(-1)[offset : offset + count]


def round_nearest(values: np.ndarray, dtype: str) -> np.ndarray:
    """fp32 values to the bits (uint16) of "bfloat16" or "float16", to nearest even."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def round_stochastic(values: np.ndarray, words: np.ndarray, dtype: str) -> np.ndarray:
    """fp32 values to one of their two neighbours in the dtype, by chance: E[result] = value. Bits, uint16.

    A random number of as many bits as fp32 has below the dtype's last, 16 or 13, from the low end of the word, is added
    to the magnitude, and the sum cut off. fp16's subnormals: the same at a fixed point of 2^-40, to which the magnitude
    is cut first; their step is 2^-24, so 16 bits are random. Beyond the largest finite value, and for NaN, to nearest.
    """
    bits = values.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if dtype == "bfloat16":
        half = (magnitude + (words & np.uint32(0xFFFF))) >> np.uint32(16)
        largest = 0x7F7F0000
    else:
        normal = (magnitude + (words & np.uint32(0x1FFF)) - FP16_BIAS) >> np.uint32(13)
        fixed = (_below(magnitude, FP16_NORMAL) * np.float32(2.0**40)).astype(np.uint32)
        subnormal = (fixed + (words & np.uint32(0xFFFF))) >> np.uint32(16)
        half = np.where(magnitude < FP16_NORMAL, subnormal, normal)
        largest = 0x477FE000
    half = (half | _sign(bits)).astype(np.uint16)
    return np.where(magnitude > np.uint32(largest), round_nearest(values, dtype), half)


def round_compensated(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """fp32 values to the nearest of the dtype (bits, uint16) and the residuals (int16) that `master` adds back.

    Ties go away from zero. The residual is the difference of the magnitudes' fp32 bit patterns: the value is kept
    exactly. Where the result is an fp16 subnormal (or zero), it is the difference of the magnitudes in units of 2^-39:
    exact from 2^-16 on; below, the value is first rounded to such a unit. Overflow and NaN leave no residual.
    """
    bits = values.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    if dtype == "bfloat16":
        half = (magnitude + np.uint32(0x8000)) >> np.uint32(16)
        residual = magnitude - (half << np.uint32(16))
        overflow = 0x7F7F8000
    else:
        half = (magnitude + np.uint32(0x1000) - FP16_BIAS) >> np.uint32(13)
        fixed = _below(magnitude, FP16_NORMAL) * np.float32(2.0**39)
        units = fixed.astype(np.uint32)
        units += fixed - units.astype(np.float32) >= np.float32(0.5)
        half = np.where(magnitude < FP16_NORMAL, (units + np.uint32(0x4000)) >> np.uint32(15), half)
        fine, coarse = units - (half << np.uint32(15)), magnitude - ((half << np.uint32(13)) + FP16_BIAS)
        residual = np.where(half < np.uint32(0x400), fine, coarse)
        overflow = 0x477FF000
    finite = magnitude < np.uint32(overflow)
    half = np.where(finite, (half | _sign(bits)).astype(np.uint16), round_nearest(values, dtype))
    return half, np.where(finite, residual.view(np.int32), 0).astype(np.int16)


def master(bits: np.ndarray, residuals: np.ndarray, dtype: str) -> np.ndarray:
    """The fp32 values that the bits (uint16) of a dtype and their residuals (int16) stand for: the weights at 0."""
    wide, residual = bits.astype(np.uint32), residuals.astype(np.int32).view(np.uint32)
    if dtype == "bfloat16":
        return ((wide << np.uint32(16)) + residual).view(np.float32)
    half = wide & np.uint32(0x7FFF)
    units = ((half << np.uint32(15)) + residual).view(np.int32)
    fine = (units.astype(np.float32) * np.float32(2.0**-39)).view(np.uint32)
    coarse = (bits & np.uint16(0x7FFF)).view(np.float16).astype(np.float32).view(np.uint32) + residual
    return (np.where(half < np.uint32(0x400), fine, coarse) | _sign(wide << np.uint32(16)) << np.uint32(16)).view(
        np.float32
    )


def _sign(bits: np.ndarray) -> np.ndarray:
    """The sign of fp32 bits, where a 16-bit dtype has it."""
    return (bits >> np.uint32(16)) & np.uint32(0x8000)


def _below(magnitude: np.ndarray, limit: np.uint32) -> np.ndarray:
    """The fp32 of these bits where they are below the limit, else 0."""
    return np.where(magnitude < limit, magnitude, np.uint32(0)).view(np.float32)


def _block_words(key: int, first: int, stop: int, domain: int = Z_DOMAIN) -> np.ndarray:
    """The words of blocks first .. stop - 1: uint32, shape (blocks, 4 words, 64 lanes)."""
    index = np.arange(first * LANES, max(first, stop) * LANES, dtype=np.uint64)
    low, high = index.astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)
    zero = np.zeros_like(low)
    words = philox4x32(np.stack([low, high, zero + np.uint32(domain), zero]), (key & 0xFFFFFFFF, key >> 32))
    return words.reshape(4, -1, LANES).swapaxes(0, 1)


def _box_muller(radius_word: np.ndarray, angle_word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two independent normals per pair of uint32 words.

    Radius: u = (v + 1/2) / 2^31 in (0, 1], v the upper 31 bits, and r = sqrt(-2 ln u). The division is an exponent
    shift, folded into the one that centres the mantissa. Angle: the lower 30 bits, as a signed fraction q in
    [-1/2, 1/2), stand for a quarter turn around pi/4, where cos = c - s and sin = c + s; bit 31 is the sign of the
    first normal and bit 30 that of the second.
    """
    v = (radius_word >> np.uint32(1)).astype(np.int32).astype(np.float32) + np.float32(0.5)
    shifted = v.view(np.int32) - np.int32(SQRT_HALF_BITS + (31 << 23))
    exponent = (shifted >> np.int32(23)).astype(np.float32)
    mantissa = ((shifted & np.int32(MANTISSA_MASK)) + np.int32(SQRT_HALF_BITS)).view(np.float32)
    t = mantissa - np.float32(1)
    r = np.sqrt(exponent * MINUS_2_LN2 + t * _polynomial(LOG_COEFFICIENTS, t))

    q = (angle_word << np.uint32(2)).view(np.int32).astype(np.float32) * np.float32(2.0**-32)
    y = q * q
    c = _polynomial(COS_COEFFICIENTS, y)
    s = q * _polynomial(SIN_COEFFICIENTS, y)
    return _flip(r * (c - s), angle_word), _flip(r * (c + s), angle_word << np.uint32(1))


def _polynomial(coefficients: tuple[np.float32, ...], x: np.ndarray) -> np.ndarray:
    value = np.full_like(x, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value


def _flip(x: np.ndarray, word: np.ndarray) -> np.ndarray:
    """Negate x where the top bit of `word` is set."""
    return (x.view(np.uint32) ^ (word & np.uint32(0x80000000))).view(np.float32)
