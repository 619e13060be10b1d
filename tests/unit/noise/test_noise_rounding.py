"""The roundings of 16-bit updates: their definition, and that no update is lost."""

import hashlib

import numpy as np
import pytest
import torch

from justforward.noise import backend, kernels, noise_key, reference
from justforward.noise.reference import master, round_compensated, round_nearest, round_stochastic, rounding_words

KEY = noise_key(0, 0, 0, "w")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(params=DTYPES)
def dtype(request) -> str:
    return request.param


def patterns() -> np.ndarray:
    """fp32 of every upper half, with lower halves on and around the grids and ties of both dtypes."""
    lower = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x2000, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    return ((np.arange(1 << 16, dtype=np.uint32)[:, None] << np.uint32(16)) | lower).ravel().view(np.float32)


def every_weight(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The bits of every number of the dtype, no NaN, and their fp32 values."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = torch.from_numpy(bits.view(np.int16)).view(DTYPES[dtype]).float().numpy()
    return bits[~np.isnan(values)], values[~np.isnan(values)]


def as_values(bits: np.ndarray, dtype: str) -> np.ndarray:
    return torch.from_numpy(bits.view(np.int16)).view(DTYPES[dtype]).double().numpy()


def test_rounding_version_is_pinned_to_the_bits():
    """If this digest must change, so must ROUNDING_VERSION: old runs are no longer reproduced."""
    values = patterns()
    values = values[~np.isnan(values)]
    words = rounding_words(noise_key(1, 2, 3, "model.weight"), 5, values.size)
    digest = hashlib.sha256(words.tobytes())
    for dtype in DTYPES:
        bits, residuals = round_compensated(values, dtype)
        for part in (round_stochastic(values, words, dtype), bits, residuals, master(bits, residuals, dtype)):
            digest.update(part.tobytes())
    assert reference.ROUNDING_VERSION == "stochastic/compensated-int16/2"
    assert digest.hexdigest()[:16] == "06e4e206fd077b87"


def test_nearest_is_torchs_own(dtype):
    values = patterns()
    theirs = torch.from_numpy(values).to(DTYPES[dtype])
    ours = torch.from_numpy(round_nearest(values, dtype).view(np.int16))
    nan = theirs.isnan()
    assert torch.equal(ours.view(DTYPES[dtype]).isnan(), nan)
    assert torch.equal(ours[~nan], theirs.view(torch.int16)[~nan])


@pytest.mark.parametrize("word", [0, 1, 0x12345678, 0xFFFFFFFF])
def test_what_is_on_the_grid_stays(dtype, word):
    bits, values = every_weight(dtype)
    assert np.array_equal(round_stochastic(values, np.full(values.size, word, np.uint32), dtype), bits)
    rounded, residuals = round_compensated(values, dtype)
    assert np.array_equal(rounded, bits)
    assert not residuals.any()
    assert np.array_equal(master(bits, residuals, dtype), values)


def test_stochastic_rounding_gives_a_neighbour_at_each_end_of_the_words(dtype):
    values = patterns()
    values = values[np.abs(values) < float(torch.finfo(DTYPES[dtype]).max)]
    toward_zero = as_values(round_stochastic(values, np.zeros(values.size, np.uint32), dtype), dtype)
    away = as_values(round_stochastic(values, np.full(values.size, 0xFFFFFFFF, np.uint32), dtype), dtype)
    assert (np.abs(toward_zero) <= np.abs(values)).all()
    grid = np.unique(every_weight(dtype)[1].astype(np.float64))
    assert np.array_equal(np.abs(toward_zero), grid[np.searchsorted(grid, np.abs(values), side="right") - 1])
    between = np.abs(away) > np.abs(toward_zero)
    assert np.array_equal(np.abs(away[between]), grid[np.searchsorted(grid, np.abs(values[between]))])
    # Only what fp16's fixed point of 2^-40 cannot tell from the grid stays put under the largest word.
    assert (np.abs(values[~between]) - np.abs(toward_zero[~between]) < 2.0**-40).all()


def test_stochastic_rounding_goes_up_in_exactly_its_share_of_all_words():
    words = np.arange(1 << 16, dtype=np.uint32)
    for fraction in (1, 777, 0x8000, 0xFFFF):
        value = np.array([0x3F800000 + fraction, 0xBF800000 + fraction], np.uint32).view(np.float32)
        for v, grid in zip(value, (0x3F80, 0xBF80), strict=True):
            rounded = round_stochastic(np.full(words.size, v), words, "bfloat16")
            assert np.count_nonzero(rounded != grid) == fraction
    value = np.float32((5 + 19_661 * 2.0**-16) * 2.0**-24)
    share = np.count_nonzero(round_stochastic(np.full(words.size, value), words, "float16") == 6) / words.size
    assert share == float(value) * 2.0**24 - 5


def test_weight_and_residual_are_the_value(dtype):
    values = patterns()
    values = values[~np.isnan(values)]
    bits, residuals = round_compensated(values, dtype)
    weights, kept = as_values(bits, dtype), master(bits, residuals, dtype)
    finite = np.isfinite(weights)
    smallest = 2.0**-16 if dtype == "float16" else 0.0
    exact = finite & (np.abs(values) >= smallest)
    assert np.array_equal(kept[exact], values[exact])
    assert (np.abs(kept[finite].astype(np.float64) - values[finite]) <= 2.0**-40).all() or dtype == "bfloat16"
    assert np.array_equal(np.signbit(kept), np.signbit(values))
    assert np.array_equal(kept[~finite], weights[~finite])
    assert not residuals[~finite].any()


def test_the_compensated_weight_is_the_nearest_with_ties_away_from_zero(dtype):
    values = patterns()
    values = values[np.isfinite(values)]
    ours = as_values(round_compensated(values, dtype)[0], dtype)
    nearest = as_values(round_nearest(values, dtype), dtype)
    wide = values.astype(np.float64)
    differs = ours != nearest
    tie = np.abs(ours - wide) == np.abs(nearest - wide)
    # Below 2^-16 fp16's residual has a coarser step than fp32: what is so close to a tie counts as one.
    close = (dtype == "float16") & (np.abs(np.abs(ours - wide) - 2.0**-25) <= 2.0**-40) & (np.abs(wide) < 2.0**-16)
    assert (tie | close)[differs].all()
    assert (np.abs(ours) > np.abs(wide))[differs].all()


@pytest.mark.parametrize("domain", [0, 1])
def test_rounding_words_are_spare_bits_of_the_gaussian_or_rademachers_own(domain):
    for i in (0, 63, 64, 200, 256, 70_001, 2**40 + 130):
        counter, k = 64 * (i // 256) + i % 64, i // 64 % 4
        words = np.array([counter & 0xFFFFFFFF, counter >> 32, domain, 0], dtype=np.uint32)
        drawn = reference.philox4x32(words, (KEY & 0xFFFFFFFF, KEY >> 32))
        if domain == 0:
            expected = drawn[k] ^ drawn[k + 1] if k % 2 == 0 else drawn[k]
            assert rounding_words(KEY, i, 1)[0] == expected
        else:
            assert rounding_words(KEY, i, 1, "rademacher")[0] == drawn[k]


@pytest.mark.parametrize(("name", "kind"), [("bfloat16", kernels.BF16), ("float16", kernels.FP16)])
def test_the_compiled_roundings_are_the_definition_for_every_pattern(name, kind):
    values = patterns()
    values = values[~np.isnan(values)]
    words = rounding_words(KEY, 0, values.size)
    rounded = np.empty(values.size, np.uint16)
    kernels.round_by_chance(rounded, values, words, kind)
    assert np.array_equal(rounded, round_stochastic(values, words, name))

    left = np.empty(values.size, np.int16)
    kernels.split_into(rounded, left, values, kind)
    bits, residuals = round_compensated(values, name)
    assert np.array_equal(rounded, bits)
    assert np.array_equal(left, residuals)

    kept = np.zeros(values.size, np.float32)
    kernels.combine_masters(kept, bits, residuals, kind, np.float32(1), np.float32(0))
    assert np.array_equal(kept, master(bits, residuals, name))


def test_many_tiny_updates_follow_the_fp32_master_exactly(dtype):
    """2,000 updates, each far below one step of the grid; nearest loses every one of them."""
    noise, steps, scale, decay = backend("cpu"), 2000, 2e-6, 1e-6
    start = torch.rand(500, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.05
    weight = (start * torch.tensor([1.0, -1.0]).repeat(250)).to(DTYPES[dtype])
    lost, residual = weight.clone(), torch.zeros(500, dtype=torch.int16)
    expected, before = weight.float().numpy(), weight.clone()
    for step in range(steps):
        key = noise_key(0, step, 0, "w")
        noise.add_([weight], [key], scale, decay, rounding="compensated", residuals=[residual])
        noise.add_([lost], [key], scale, decay)
        expected = expected * np.float32(1 - decay) + np.float32(scale) * reference.gaussian(key, 0, 500)
    bits = weight.view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(master(bits, residual.numpy(), dtype), expected)
    assert np.array_equal(bits, round_compensated(expected, dtype)[0])
    assert np.abs(expected - before.float().numpy()).mean() > 20 * scale
    assert torch.equal(lost, before)


def test_fp16_subnormals_follow_the_fp32_master_closely():
    noise, scale = backend("cpu"), 2.0**-30
    weight, residual = torch.zeros(500, dtype=torch.float16), torch.zeros(500, dtype=torch.int16)
    expected = np.zeros(500, np.float32)
    for step in range(500):
        key = noise_key(0, step, 0, "w")
        noise.add_([weight], [key], scale, rounding="compensated", residuals=[residual])
        expected = expected + np.float32(scale) * reference.gaussian(key, 0, 500)
    kept = master(weight.view(torch.int16).numpy().view(np.uint16), residual.numpy(), "float16")
    # 500 roundings to 2^-39, each off by 2^-40 at most.
    assert np.abs(kept - expected).max() < 500 * 2.0**-40
    assert np.abs(kept).mean() > 10 * scale


def test_autograd_sees_the_residual_written():
    weight, residual = torch.ones(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.int16)
    versions = weight._version, residual._version
    backend("cpu").add_([weight], [KEY], 1e-3, rounding="compensated", residuals=[residual])
    assert weight._version > versions[0]
    assert residual._version > versions[1]


def half(*shape):
    return torch.ones(*shape, dtype=torch.float16)


def zeros(*shape, dtype=torch.int16):
    return torch.zeros(*shape, dtype=dtype)


SHARED = zeros(3)


@pytest.mark.parametrize(
    ("weights", "rounding", "residuals", "message"),
    [
        ([half(3)], "upward", None, "nearest, stochastic, compensated"),
        ([half(3)], "stochastic", [zeros(3)], "residuals are for"),
        ([half(3)], "nearest", [zeros(3)], "residuals are for"),
        ([half(3)], "compensated", None, "residuals: 0 for 1"),
        ([half(3), half(3)], "compensated", [zeros(3)], "residuals: 1 for 2"),
        ([half(3)], "compensated", [None], r"residuals\[0\] must be None for float32"),
        ([half(3), torch.ones(3)], "compensated", [zeros(3), zeros(3)], r"residuals\[1\] must be None for float32"),
        ([half(3)], "compensated", [zeros(4)], r"residuals\[0\] must be contiguous int16 of \(3,\)"),
        ([half(3)], "compensated", [zeros(3, dtype=torch.int32)], "must be contiguous int16"),
        ([half(3, 2)], "compensated", [zeros(2, 3).T], "must be contiguous int16"),
        ([half(3), half(3)], "compensated", [SHARED, SHARED], "share their memory"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(weights, rounding, residuals, message):
    with pytest.raises(ValueError, match=message):
        backend("cpu").add_(weights, [KEY] * len(weights), 1.0, rounding=rounding, residuals=residuals)
    assert all((weight == 1).all() for weight in weights)
