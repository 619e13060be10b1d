"""Every noise backend gives the bits of noise.reference. A new backend is one more line in BACKENDS."""

import os
from importlib import import_module
from itertools import pairwise

import numpy as np
import pytest
import torch

from justforward.noise import DISTRIBUTIONS, ROUNDINGS, NoiseBackend, backend, noise_key, recording, reference

BACKENDS: list = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Where Triton is installed, TRITON_INTERPRET=1 runs its kernel on the CPU.
if os.environ.get("TRITON_INTERPRET") == "1":
    BACKENDS[1] = "triton-interpreter"

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 63, 64, 65, 255, 257, 100_003]
STARTS = [0, 1, 191, 256, 8191, 2**33 + 77]
KEY = noise_key(11, 5, 0, "model.layers.0.weight")
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@pytest.fixture(params=BACKENDS)
def noise(request) -> NoiseBackend:
    if request.param == "triton-interpreter":
        return import_module("justforward.noise.triton").TritonNoise("cpu")
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return backend(request.param)


@pytest.fixture
def device(noise) -> str:
    return noise.device


@pytest.fixture(params=DISTRIBUTIONS)
def distribution(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


def drawn(distribution: str, key: int, start: int, count: int) -> np.ndarray:
    return {"gaussian": reference.gaussian, "rademacher": reference.rademacher}[distribution](key, start, count)


def weights(size: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(size)) * 0.03).to(dtype)


def updated(weight: torch.Tensor, z: np.ndarray, scale: float, decay: float = 0.0) -> torch.Tensor:
    """The update rule, one rounding at a time, in numpy."""
    kept = weight.float().numpy().reshape(-1) * np.float32(1 - decay)
    return torch.from_numpy(kept + np.float32(scale) * z).to(weight.dtype).view(weight.shape)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    actual = actual.cpu()
    assert actual.dtype == expected.dtype
    view = BITS[expected.dtype]
    assert torch.equal(actual.contiguous().view(view), expected.contiguous().view(view))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("start", STARTS)
def test_add_fill_and_perturb_are_the_reference(noise, device, dtype, distribution, size, start):
    z = drawn(distribution, KEY, start, size)
    before = weights(size, dtype)

    added = before.to(device, copy=True)
    noise.add_([added], [KEY], 1e-3, distribution=distribution, starts=start)
    assert_same_bits(added, updated(before, z, 1e-3))

    source, out = before.to(device, copy=True), torch.full((size,), 7.0, dtype=dtype, device=device)
    noise.perturb(out, source, KEY, 1e-3, start, distribution)
    assert_same_bits(out, updated(before, z, 1e-3))
    assert_same_bits(source, before)

    noise.fill_(out, KEY, start, distribution)
    assert_same_bits(out, torch.from_numpy(z).to(dtype))


NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.cpu().view(torch.int16).numpy().view(np.uint16)


def of_bits(bits: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(dtype)


def summed(value: np.ndarray, z: np.ndarray, scale: float, decay: float) -> np.ndarray:
    """The update rule in fp32, before the last rounding."""
    return value * np.float32(1 - decay) + np.float32(scale) * z


@pytest.fixture(params=NAMES, ids=str)
def short(request):
    """The dtypes that have a rounding to choose."""
    return request.param


def spread(size: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights of every magnitude from fp16's subnormals to 1."""
    generator = torch.Generator().manual_seed(size)
    magnitudes = torch.rand(size, generator=generator) * 27 - 27
    return (torch.randn(size, generator=generator) * magnitudes.exp2()).to(dtype)


@pytest.mark.parametrize("size", [1, 65, 257, 20_003])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("scale", [1e-7, 1e-3])
def test_stochastic_rounding_is_the_reference(noise, device, short, distribution, size, start, scale):
    before = spread(size, short)
    after = before.to(device, copy=True)
    noise.add_([after], [KEY], scale, 0.01, distribution, starts=start, rounding="stochastic")
    values = summed(before.float().numpy(), drawn(distribution, KEY, start, size), scale, 0.01)
    words = reference.rounding_words(KEY, start, size, distribution)
    assert_same_bits(after, of_bits(reference.round_stochastic(values, words, NAMES[short]), short))


@pytest.mark.parametrize("size", [1, 65, 257, 20_003])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("scale", [1e-7, 1e-3])
def test_compensated_rounding_is_the_reference(noise, device, short, distribution, size, start, scale):
    weight = spread(size, short)
    kept = torch.zeros(size, dtype=torch.int16)
    after, residuals = weight.to(device, copy=True), kept.to(device, copy=True)
    for step in range(3):
        noise.add_(
            [after],
            [KEY + step],
            scale,
            0.01,
            distribution,
            starts=start,
            rounding="compensated",
            residuals=[residuals],
        )
        values = reference.master(bits_of(weight), kept.numpy(), NAMES[short])
        values = summed(values, drawn(distribution, KEY + step, start, size), scale, 0.01)
        bits, left = reference.round_compensated(values, NAMES[short])
        weight, kept = of_bits(bits, short), torch.from_numpy(left)
        assert_same_bits(after, weight)
        assert torch.equal(residuals.cpu(), kept)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_given_values_are_added_and_rounded_as_drawn_ones(noise, device, dtype, rounding, size, start):
    """Rademacher noise, which has random bits of its own for rounding, is what given values are held to."""
    before = spread(size, dtype)
    given = torch.from_numpy(np.float32(1e-3) * reference.rademacher(KEY, start, size)).to(device)
    results = []
    for move in ("add_", "move_"):
        after = before.to(device, copy=True)
        residual = torch.zeros(size, dtype=torch.int16, device=device) if dtype != torch.float32 else None
        residual = residual if rounding == "compensated" else None
        if move == "move_":
            noise.move_(after, given, KEY, 0.01, start=start, rounding=rounding, residual=residual)
        else:
            residuals = [residual] if rounding == "compensated" else None
            where = {"starts": start, "rounding": rounding, "residuals": residuals}
            noise.add_([after], [KEY], 1e-3, 0.01, "rademacher", **where)
        results.append((after.cpu(), residual))
    assert_same_bits(results[1][0], results[0][0])
    assert results[0][1] is None or torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda device: torch.zeros(5, device=device), "values must be float32 of"),
        (lambda device: torch.zeros(6, dtype=torch.bfloat16, device=device), "values must be float32 of"),
        (lambda device: torch.zeros(12, device=device)[::2], "values must be contiguous"),
    ],
)
def test_given_values_that_do_not_fit_are_refused(noise, device, values, message):
    with pytest.raises(ValueError, match=message):
        noise.move_(torch.zeros(6, device=device), values(device), KEY)


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_float32_is_rounded_to_nearest_whatever_is_asked(noise, device, rounding):
    before = [weights(300, torch.float32), weights(300, torch.bfloat16)]
    plain = [tensor.to(device, copy=True) for tensor in before]
    noise.add_(plain, [KEY, KEY + 1], 1e-4)
    other = [tensor.to(device, copy=True) for tensor in before]
    residuals = [None, torch.zeros(300, dtype=torch.int16, device=device)] if rounding == "compensated" else None
    noise.add_(other, [KEY, KEY + 1], 1e-4, rounding=rounding, residuals=residuals)
    assert_same_bits(other[0], plain[0].cpu())


@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_strided_weights_are_rounded_in_the_order_of_their_shape(noise, device, short, rounding):
    base = spread(24 * 50, short).view(24, 50)
    plain, strided = base.T.contiguous().to(device), base.to(device, copy=True).T
    for weight in (plain, strided):
        residuals = [torch.zeros(50, 24, dtype=torch.int16, device=device)] if rounding == "compensated" else None
        noise.add_([weight], [KEY], 1e-3, rounding=rounding, residuals=residuals)
    assert_same_bits(strided, plain.cpu())


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("rounding", ["stochastic", "compensated"])
def test_every_rounding_overflows_as_nearest_does(noise, device, short, rounding):
    largest = torch.finfo(short).max
    before = torch.tensor([float("inf"), float("-inf"), float("nan"), largest, -largest, largest], dtype=short)
    after, residuals = before.to(device, copy=True), torch.zeros(6, dtype=torch.int16, device=device)
    # One step above the largest is 2^-8 or 2^-11 of its power of two: a quarter of it stays, three quarters overflow.
    step = largest * (2**-8 if short == torch.bfloat16 else 2**-11)
    start = next(s for s in range(100) if (reference.rademacher(KEY, s + 3, 3) == [1, -1, 1]).all())
    extra = [residuals] if rounding == "compensated" else None
    noise.add_([after], [KEY], 0.75 * step, distribution="rademacher", starts=start, rounding=rounding, residuals=extra)
    inf = float("inf")
    assert after.tolist()[:2] == [inf, -inf]
    assert after[2].isnan()
    assert after.tolist()[3:] == [inf, -inf, inf]
    assert not residuals.any()

    below = before[3:].to(device, copy=True)
    extra = [residuals[:3]] if rounding == "compensated" else None
    begin = start + 3
    noise.add_([below], [KEY], step / 4, 0.0, "rademacher", starts=begin, rounding=rounding, residuals=extra)
    assert_same_bits(below, before[3:])


def test_perturb_many_is_perturb_of_each(noise, device, distribution):
    sizes, scales, starts = [300, 1, 70_000, 0, 257], [0.1, -2.0, 1e-3, 1.0, 0.0], [5, 0, 8191, 3, 256]
    before = [weights(size, DTYPES[i % 3]) for i, size in enumerate(sizes)]
    keys = [noise_key(0, 0, 0, str(i)) for i in range(len(sizes))]
    sources = [tensor.to(device, copy=True) for tensor in before]
    outs = [torch.full_like(tensor, 7.0) for tensor in sources]
    noise.perturb_many(outs, sources, keys, scales, starts, distribution)
    for was, source, out, key, scale, start in zip(before, sources, outs, keys, scales, starts, strict=True):
        assert_same_bits(out, updated(was, drawn(distribution, key, start, was.numel()), scale))
        assert_same_bits(source, was)

    noise.perturb_many(outs, sources, keys, 0.5, distribution=distribution)
    assert_same_bits(outs[2], updated(before[2], drawn(distribution, keys[2], 0, sizes[2]), 0.5))


def test_mirrors_are_the_opposite_perturbation(noise, device, dtype, distribution):
    sizes = [300, 1, 70_000, 0, 257]
    keys = [noise_key(0, 0, 0, str(i)) for i in range(len(sizes))]
    sources = [weights(size, dtype).to(device) for size in sizes]
    first, second = [[torch.full_like(t, 7.0) for t in sources] for _ in range(2)]
    noise.perturb_many(first, sources, keys, 0.25, 5, distribution, mirrors=second)
    for outs, scale in ((first, 0.25), (second, -0.25)):
        alone = [torch.empty_like(t) for t in sources]
        noise.perturb_many(alone, sources, keys, scale, 5, distribution)
        for out, expected in zip(outs, alone, strict=True):
            assert_same_bits(out, expected.cpu())


def test_mirrored_rows_are_the_opposite_perturbation(noise, device, dtype, distribution):
    table, rows = weights(50 * 257, dtype).view(50, 257).to(device), torch.tensor([49, 0, 7, 8, 21], device=device)
    first, second, alone = (torch.empty(5, 257, dtype=dtype, device=device) for _ in range(3))
    noise.perturb_rows(first, table, rows, KEY, 0.25, distribution, mirror=second)
    for out, scale in ((first, 0.25), (second, -0.25)):
        noise.perturb_rows(alone, table, rows, KEY, scale, distribution)
        assert_same_bits(out, alone.cpu())


@pytest.mark.parametrize("width", [1, 5, 64, 255, 257, 770, 8193])
def test_perturbed_rows_are_rows_of_the_perturbed_whole(noise, device, dtype, distribution, width):
    before = weights(50 * width, dtype).view(50, width)
    whole = torch.empty_like(before, device=device)
    noise.perturb(whole, before.to(device), KEY, 0.1, distribution=distribution)

    rows = torch.tensor([49, 0, 7, 8, 21])
    source, out = before.to(device, copy=True), torch.full((5, width), 7.0, dtype=dtype, device=device)
    noise.perturb_rows(out, source, rows.to(device), KEY, 0.1, distribution)
    assert_same_bits(out, whole.cpu()[rows])
    assert_same_bits(source, before)


def test_no_rows_draw_nothing(noise, device):
    none = torch.zeros(0, dtype=torch.int64, device=device)
    noise.perturb_rows(torch.empty(0, 3, device=device), torch.ones(4, 3, device=device), none, KEY, 1.0)


def test_one_launch_takes_every_dtype_with_its_own_numbers(noise, device, distribution):
    sizes, scales, decays, starts = [300, 1, 70_000, 0, 257], [0.1, -2.0, 1e-3, 1.0, 0.0], [0.0, 0.5, 1e-4, 0.1, 1.0], 5
    before = [weights(size, DTYPES[i % 3]) for i, size in enumerate(sizes)]
    keys = [noise_key(0, 0, 0, str(i)) for i in range(len(sizes))]
    after = [tensor.to(device, copy=True) for tensor in before]
    noise.add_(after, keys, scales, decays, distribution, starts=starts)
    for was, now, key, scale, decay in zip(before, after, keys, scales, decays, strict=True):
        assert_same_bits(now, updated(was, drawn(distribution, key, starts, was.numel()), scale, decay))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("sizes", "start"), [([16, 8192, 20_000], 4096), ([5, 8193, 257], 77)], ids=["even", "odd"])
def test_tensors_in_one_launch_are_rounded_as_one_by_one(noise, device, dtype, distribution, rounding, sizes, start):
    keys, made = [noise_key(0, 0, 0, str(i)) for i in range(len(sizes))], []
    for groups in ([range(len(sizes))], [[i] for i in range(len(sizes))]):
        after = [weights(size, dtype).to(device) for size in sizes]
        short = rounding == "compensated" and dtype != torch.float32
        kept = [torch.zeros(size, dtype=torch.int16, device=device) if short else None for size in sizes]
        for group in groups:
            more = {"residuals": [kept[i] for i in group]} if rounding == "compensated" else {}
            chosen, own = [after[i] for i in group], [keys[i] for i in group]
            noise.add_(chosen, own, 1e-3, 0.01, distribution, starts=start, rounding=rounding, **more)
        made.append([*after, *(one for one in kept if one is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_a_tensor_is_the_sum_of_its_shards(noise, device, dtype, distribution):
    whole = weights(10_000, dtype).to(device)
    shards = whole.clone()
    cuts = [0, 1, 700, 8500, 10_000]
    pieces = [shards[a:b] for a, b in pairwise(cuts)]
    noise.add_([whole], [KEY], 0.01, 0.1, distribution)
    noise.add_(pieces, [KEY] * len(pieces), 0.01, 0.1, distribution, starts=cuts[:-1])
    assert_same_bits(shards, whole.cpu())


@pytest.mark.parametrize("layout", ["transposed", "sliced", "channels_last"])
def test_strided_weights_follow_the_order_of_their_shape(noise, device, dtype, layout):
    base = weights(4 * 6 * 10 * 12, dtype).view(4, 6, 10, 12)
    make = {
        "transposed": lambda t: t.view(24, 120).T,
        "sliced": lambda t: t[:, 1:5, ::2],
        "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    }[layout]
    before = make(base)
    assert not before.is_contiguous()
    z = reference.gaussian(KEY, 0, before.numel())

    strided = make(base.to(device, copy=True))
    noise.add_([strided], [KEY], 0.5, 0.25)
    assert_same_bits(strided, updated(before.contiguous(), z, 0.5, 0.25))

    noise.fill_(strided, KEY)
    assert_same_bits(strided, torch.from_numpy(z).to(dtype).view(before.shape))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_infinities_and_nans_stay_and_overflow_is_infinite(noise, device, dtype):
    before = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, torch.finfo(dtype).max], dtype=dtype)
    after = before.to(device, copy=True)
    signs = reference.rademacher(KEY, 0, 5)
    scale = float(signs[4]) * (1e5 if dtype == torch.float16 else 3e38)
    noise.add_([after], [KEY], scale, distribution="rademacher")
    expected = updated(before, signs, scale)
    assert expected[4].isinf()
    assert after.cpu()[2].isnan()
    rest = [0, 1, 3, 4]
    assert_same_bits(after.cpu()[rest], expected[rest])


def test_scalar_and_empty_tensors(noise, device, distribution):
    scalar, empty = torch.zeros((), device=device), torch.zeros(0, 3, device=device)
    noise.add_([empty, scalar], [KEY, KEY], 1.0, distribution=distribution)
    assert scalar.item() == drawn(distribution, KEY, 0, 1)[0]


@pytest.mark.parametrize("noise", BACKENDS[1:], indirect=True)
def test_a_recorded_launch_takes_key_and_scale_from_its_row(noise, device, dtype, distribution):
    recorded, launches = (noise_key(1, 2, 3, "x"), 0.01), recording.Launches(device)
    launches.write([(KEY, -0.02)])
    weight, table = weights(5000, dtype).to(device), weights(6000, dtype).view(20, 300).to(device)
    rows = torch.tensor([3, 0, 19], device=device)
    outs, others = ([torch.empty_like(weight) for _ in range(2)] for _ in range(2))
    with recording.recording(launches):
        noise.perturb_many([outs[0]], [weight], [recorded[0]], recorded[1], 0, distribution, [outs[1]])
    noise.perturb_many([others[0]], [weight], [KEY], -0.02, 0, distribution, [others[1]])
    chosen, plain = (torch.empty(3, 300, dtype=dtype, device=device) for _ in range(2))
    with recording.recording(launches):
        noise.perturb_rows(chosen, table, rows, *recorded, distribution)
    noise.perturb_rows(plain, table, rows, KEY, -0.02, distribution)
    assert launches.made == [recorded]
    for made, expected in zip([*outs, chosen], [*others, plain], strict=True):
        assert_same_bits(made, expected.cpu())


@pytest.mark.parametrize("noise", BACKENDS[1:], indirect=True)
def test_launches_that_tensors_share_are_not_recorded(noise, device):
    tensors = [weights(100, torch.float32).to(device) for _ in range(2)]
    with recording.recording(recording.Launches(device)), pytest.raises(recording.NotRecordable):
        noise.perturb_many([torch.empty_like(t) for t in tensors], tensors, [1, 2], 0.1)
