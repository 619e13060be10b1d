"""The CPU backend's own promises: threads, rounding, errors, what it tells autograd."""

import sys

import numpy as np
import pytest
import torch

from justforward.noise import backend, cpu, kernels, noise_key, reference

KEY = noise_key(0, 0, 0, "w")


@pytest.fixture
def noise():
    return backend("cpu")


@pytest.fixture
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_thread_count_does_not_change_bits(noise, restore_threads, monkeypatch, threads):
    monkeypatch.setattr(cpu, "PIECE", 1000)
    monkeypatch.setattr(cpu, "ALONE", 0)
    drawn = []
    for count in (1, threads):
        torch.set_num_threads(count)
        weights = [torch.ones(50_001), torch.ones(7), torch.ones(123, 45)]
        noise.add_(weights, [KEY, KEY + 1, KEY + 2], 0.5)
        drawn.append(weights)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_thread_count_does_not_change_perturbed_rows(noise, restore_threads, monkeypatch, threads):
    monkeypatch.setattr(cpu, "PIECE", 1000)
    monkeypatch.setattr(cpu, "ALONE", 0)
    torch.set_num_threads(threads)
    table, out = torch.ones(500, 130), torch.empty(100, 130)
    rows = torch.arange(499, -1, -5)
    noise.perturb_rows(out, table, rows, KEY, 0.5)
    noise.add_([table], [KEY], 0.5)
    assert torch.equal(out, table[rows])


def boundary_patterns() -> np.ndarray:
    """Every upper half of an fp32 with the lower halves, and fp16's lower 13 bits, on and around the ties."""
    lower = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=np.uint32)
    return ((np.arange(1 << 16, dtype=np.uint32)[:, None] << np.uint32(16)) | lower).ravel()


@pytest.mark.parametrize(("kind", "dtype"), [(kernels.BF16, torch.bfloat16), (kernels.FP16, torch.float16)])
def test_rounding_is_torchs_own(kind, dtype):
    values = boundary_patterns().view(np.float32)
    rounded = np.empty(values.size, np.uint16)
    kernels.round_into(rounded, values, kind)
    ours = torch.from_numpy(rounded.view(np.int16))
    theirs = torch.from_numpy(values).to(dtype)
    nan = theirs.isnan()
    assert torch.equal(ours.view(dtype).isnan(), nan)
    assert torch.equal(ours[~nan], theirs.view(torch.int16)[~nan])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_noise_leaves_every_16_bit_pattern_alone(noise, dtype):
    patterns = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    weights = patterns.clone().view(dtype)
    was_nan = weights.isnan()
    noise.add_([weights], [KEY], 0.0)
    assert torch.equal(weights.isnan(), was_nan)
    changed = patterns[weights.view(torch.int16) != patterns].view(dtype)
    assert all(value.isnan() or value == 0 for value in changed)  # -0 + 0 is +0


def test_autograd_sees_the_write(noise):
    weight = torch.ones(8, requires_grad=True)
    loss = (weight * weight).sum()
    noise.add_([weight], [KEY], 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_tensors_and_parameters_work(noise):
    with torch.inference_mode():
        frozen = torch.zeros(10)
    parameter = torch.nn.Parameter(torch.zeros(10))
    noise.add_([frozen, parameter], [KEY, KEY], 1.0)
    assert frozen.abs().sum() > 0
    assert torch.equal(frozen.clone(), parameter.detach())


def ones(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.add_([ones(3, dtype=torch.float64)], [KEY], 1.0), "float32, bfloat16 and float16"),
        (lambda n: n.add_([ones(3)], [KEY, KEY], 1.0), "keys: 2 for 1"),
        (lambda n: n.add_([ones(3)], [KEY], [1.0, 2.0]), "scale: 2 for 1"),
        (lambda n: n.add_([ones(3)], [KEY], 1.0, [0.0, 0.0]), "decay: 2 for 1"),
        (lambda n: n.add_([ones(3)], [KEY], float("nan")), "scale must be finite"),
        (lambda n: n.add_([ones(3)], [KEY], 1e39), "scale must be finite"),
        (lambda n: n.add_([ones(3)], [KEY], 1.0, float("inf")), "decay must be finite"),
        (lambda n: n.add_([ones(3)], [2**64], 1.0), "64 bits"),
        (lambda n: n.add_([ones(3)], [KEY], 1.0, starts=-1), "not negative"),
        (lambda n: n.add_([ones(3)], [KEY], 1.0, distribution="cauchy"), "gaussian, rademacher"),
        (lambda n: n.add_([ones(3).expand(2, 3)], [KEY], 1.0), "repeats its memory"),
        (lambda n: n.add_([torch.empty(3, device="meta")], [KEY], 1.0), "tensor on meta"),
        (lambda n: n.fill_(ones(3, dtype=torch.int32), KEY), "float32, bfloat16 and float16"),
        (lambda n: n.perturb(ones(3), ones(4), KEY, 1.0), "out must be"),
        (lambda n: n.perturb(ones(3, dtype=torch.float16), ones(3), KEY, 1.0), "out must be"),
        (lambda n: n.perturb(ones(3, 2).T, ones(2, 3), KEY, 1.0), "contiguous"),
        (lambda n: n.perturb(ones(3), ones(3), KEY, float("inf")), "scale must be finite"),
        (lambda n: n.perturb_many([ones(3)], [ones(3)] * 2, [KEY] * 2, 1.0), "outs: 1 and keys: 2 for 2"),
        (lambda n: n.perturb_many([ones(3)] * 2, [ones(3)] * 2, [KEY] * 2, 1.0), "share their memory"),
        (lambda n: n.perturb_many([ones(3), ones(4)], [ones(3)] * 2, [KEY] * 2, 1.0), "out must be"),
        (lambda n: n.perturb_rows(ones(2, 3), ones(4, 3), torch.tensor([0, 4]), KEY, 1.0), "from 0 to 3.*from 0 to 4"),
        (lambda n: n.perturb_rows(ones(2, 3), ones(4, 3), torch.tensor([-1, 1]), KEY, 1.0), "from 0 to 3.*from -1"),
        (lambda n: n.perturb_rows(ones(2, 3), ones(4, 3), torch.tensor([0]), KEY, 1.0), "out must be"),
        (lambda n: n.perturb_rows(ones(1, 3), ones(4, 3), torch.tensor([0.0]), KEY, 1.0), "rows must be int64"),
        (lambda n: n.perturb_rows(ones(1, 3), ones(3), torch.tensor([0]), KEY, 1.0), "takes a matrix"),
    ],
)
def test_mistakes_are_named(noise, call, message):
    with pytest.raises(ValueError, match=message):
        call(noise)


def test_tied_weights_are_refused_and_nothing_is_written(noise):
    weight = ones(4)
    with pytest.raises(ValueError, match="tensors 1 and 2 share their memory"):
        noise.add_([ones(4), weight, weight.view(2, 2)], [KEY] * 3, 1.0)
    assert torch.equal(weight, ones(4))


def test_unknown_device_is_named():
    with pytest.raises(ValueError, match=r"device type 'mps'.*cpu"):
        backend("mps")


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "justforward.noise.triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ValueError, match="pip install triton"):
        backend("cuda:0")


def test_a_kernel_that_differs_from_the_reference_is_refused(monkeypatch):
    monkeypatch.setattr(reference, "gaussian", lambda key, start, count: np.zeros(count, np.float32))
    with pytest.raises(RuntimeError, match="differs from its definition"):
        cpu.load.__wrapped__()
