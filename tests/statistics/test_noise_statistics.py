"""The definition is a good source of noise. Keys are fixed, so these figures never change from run to run.

Bounds are 5 standard errors of what is measured: a true failure is far outside, a chance one is 1 in a million.
"""

import math

import numpy as np
import pytest
import torch

from justforward.noise import backend, noise_key, reference

N = 1 << 22
BOUND = 5 / math.sqrt(N)


def draw(key: int, distribution: str = "gaussian", count: int = N) -> np.ndarray:
    z = torch.empty(count)
    backend("cpu").fill_(z, key, distribution=distribution)
    return z.numpy()


@pytest.fixture(scope="module")
def z() -> np.ndarray:
    return draw(noise_key(0, 0, 0, "w")).astype(np.float64)


@pytest.mark.parametrize(
    ("power", "moment", "variance"),
    [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)],
)
def test_moments(z, power, moment, variance):
    assert abs(np.mean(z**power) - moment) < BOUND * math.sqrt(variance)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return 0.5 * torch.special.erfc(torch.from_numpy(-x / math.sqrt(2))).numpy()


def test_kolmogorov_smirnov_distance(z):
    expected = normal_cdf(np.sort(z))
    ranks = np.arange(N + 1) / N
    distance = max(np.max(ranks[1:] - expected), np.max(expected - ranks[:-1]))
    assert distance * math.sqrt(N) < 1.95  # the 0.1 % point


@pytest.mark.parametrize("threshold", [2.0, 3.0, 4.0])
def test_both_tails_have_their_share(z, threshold):
    expected = N * 0.5 * math.erfc(threshold / math.sqrt(2))
    for tail in (z > threshold, z < -threshold):
        assert abs(np.count_nonzero(tail) - expected) < 5 * math.sqrt(expected)


def test_the_tails_reach_beyond_five(z):
    assert z.max() > 5
    assert z.min() < -4.8
    assert np.abs(z).max() < 6.7


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("lag", [1, 2, 63, 64, 65, 128, 192, 256, 4096, 8192])
def test_neighbours_are_uncorrelated(distribution, lag):
    z = draw(noise_key(0, 0, 0, "w"), distribution).astype(np.float64)
    count = N - lag
    assert abs(np.mean(z[:-lag] * z[lag:])) < 5 / math.sqrt(count)
    squares = z * z - 1
    assert abs(np.mean(squares[:-lag] * squares[lag:])) < 2 * 5 / math.sqrt(count)


OTHERS = [
    pytest.param((0, 1, 0, "w"), id="next step"),
    pytest.param((0, 2**40, 0, "w"), id="far step"),
    pytest.param((0, 0, 1, "w"), id="next sample"),
    pytest.param((0, 0, 0, "v"), id="other name"),
    pytest.param((0, 0, 0, "w."), id="longer name"),
    pytest.param((1, 0, 0, "w"), id="next seed"),
    pytest.param((-1, 0, 0, "w"), id="negative seed"),
]


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("other", OTHERS)
def test_draws_of_different_keys_are_uncorrelated(distribution, other):
    first = draw(noise_key(0, 0, 0, "w"), distribution).astype(np.float64)
    second = draw(noise_key(*other), distribution).astype(np.float64)
    assert abs(np.mean(first * second)) < BOUND
    assert abs(np.mean((first**2 - 1) * (second**2 - 1))) < 2 * BOUND


def test_neighbouring_keys_are_uncorrelated():
    assert abs(np.mean(draw(7).astype(np.float64) * draw(8))) < BOUND


def test_rademacher_is_balanced_in_every_bit_of_the_word():
    signs = draw(noise_key(0, 0, 0, "w"), "rademacher")
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean(dtype=np.float64)) < BOUND
    per_bit = signs.reshape(-1, 32, 256).mean(axis=(0, 2), dtype=np.float64)
    assert np.abs(per_bit).max() < 5 / math.sqrt(N / 32)


BF16, FP16 = torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("dtype", "weight", "keep", "step"),
    [
        (BF16, 1.0, 1 + 2**-12, 2**-7),
        (BF16, 1.0, 1 - 2**-20, 2**-8),
        (BF16, -0.0123, 1.0002, 2**-14),
        (BF16, 2**-125, 1.3, 2**-132),
        (FP16, 1.0, 1 + 2**-14, 2**-10),
        (FP16, -0.0123, 1.0002, 2**-17),
        (FP16, 2**-14, 0.7777, 2**-24),
        (FP16, 2**-14, 1 - 2**-13, 2**-24),
        (FP16, 5 * 2**-24, 1.06, 2**-24),
        (FP16, 2**-24, -0.01, 2**-24),
    ],
)
def test_stochastic_rounding_is_unbiased_over_keys(dtype, weight, keep, step):
    """400 keys, 4,096 elements each: the mean of weight * keep, rounded by the backend, is weight * keep."""
    keys, count = 400, 4096
    before = torch.full((count,), weight, dtype=dtype)
    value = float(np.float32(before[0].item()) * np.float32(keep))
    error = np.empty((keys, count))
    for step_index in range(keys):
        weights, key = before.clone(), noise_key(0, step_index, 0, "w")
        backend("cpu").add_([weights], [key], 0.0, 1 - keep, rounding="stochastic")
        error[step_index] = (weights.double().numpy() - value) / step
    fraction = abs(value) / step % 1
    variance = fraction * (1 - fraction)
    assert variance > 0
    assert abs(error.mean()) < 5 * math.sqrt(variance / error.size)
    assert np.mean(error**2) == pytest.approx(variance, rel=0.1)
    # Neither the element nor the key decides which way it goes.
    assert np.abs(error.mean(axis=0)).max() < 6 * math.sqrt(variance / keys) + 6 / keys
    assert np.abs(error.mean(axis=1)).max() < 6 * math.sqrt(variance / count) + 6 / count


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_what_stochastic_rounding_adds_is_independent_of_z(dtype, distribution):
    key = noise_key(0, 0, 0, "w")
    weights = torch.full((N,), 1.0, dtype=dtype)
    backend("cpu").add_([weights], [key], 1e-3, distribution=distribution, rounding="stochastic")
    z = draw(key, distribution)
    exact = np.float32(1) + np.float32(1e-3) * z
    error = weights.double().numpy() - exact
    error /= error.std()
    z = z.astype(np.float64)
    assert abs(np.mean(error)) < BOUND
    assert abs(np.mean(error * z)) < 1.1 * BOUND
    assert abs(np.mean(error * (z * z - 1))) < 2 * BOUND


@pytest.mark.parametrize("lag", [0, 1, 64, 256])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_the_words_of_rounding_are_uniform_and_independent_of_z_and_of_each_other(lag, distribution):
    z = draw(noise_key(0, 0, 0, "w"), distribution)
    words = reference.rounding_words(noise_key(0, 0, 0, "w"), 0, N, distribution)
    for bits in (13, 16):
        low = (words & np.uint32((1 << bits) - 1)).astype(np.float64) / (1 << bits)
        u = (low - 0.5) * math.sqrt(12)
        assert abs(np.mean(u)) < BOUND
        assert abs(np.mean(u * np.roll(z, lag))) < BOUND
        assert abs(np.mean(u * np.roll(z * z - 1, lag))) < 2 * BOUND
        if lag:
            assert abs(np.mean(u[:-lag] * u[lag:])) < 5 / math.sqrt(N - lag)
