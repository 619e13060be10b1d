"""The drift table (bench/precision.py), in small: probes change nothing, updates are not lost."""

import math

import pytest
import torch

from bench import precision
from justforward.optim import MeZO

SIZES = {"steps": (100,), "count": 20_000}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["nearest", "stochastic", "compensated"])
def test_probes_restore_every_bit(dtype, way):
    assert precision.drift(dtype, way, 1e-6, **SIZES)["restore_rms_per_step"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lr", [1e-5, 1e-6, 1e-7])
def test_compensated_updates_go_where_they_should(dtype, lr):
    row = precision.drift(dtype, "compensated", lr, **SIZES)["100"]
    assert row["cosine"] >= 0.99
    assert row["length"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_textbook_drifts(dtype):
    row = precision.drift(dtype, "in place", 1e-6, **SIZES)
    assert row["restore_rms_per_step"] > 1e-6
    assert row["100"]["cosine"] < 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_updates_are_unbiased(dtype):
    """Mean movement over many weights against the intended one: a z-test at five standard errors."""
    count, lr = 200_000, 1e-6
    weights = torch.nn.Parameter(torch.full((count,), 0.03).to(dtype))
    start = weights.detach().double().clone()
    mezo = MeZO([("w", weights)], lr=lr, eps=1e-3, weight_decay=0.0, probe="copy")
    moved_along = []
    for _ in range(20):
        before = weights.detach().double().clone()
        losses = iter((2e-3, 0.0))
        mezo.step(lambda losses=losses: next(losses))
        moved_along.append((weights.detach().double() - before).mean().item())
    assert not torch.equal(weights.detach().double(), start)
    # The intended movement has mean 0 per step (z has); what rounding adds must have, too.
    total = sum(moved_along)
    ulp = 2**-13 if dtype == torch.bfloat16 else 2**-16
    error = math.sqrt(20 * lr * ulp / count)
    assert abs(total) < 5 * error + 5 * lr * math.sqrt(20 / count)
