"""The optimiser alone, in a plain PyTorch loop."""

import copy
import math

import pytest
import torch

from justforward import MeZO
from justforward.noise.reference import gaussian, noise_key
from justforward.optim import CounterNoise, DivergenceError


def linear(dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(6, 4).to(dtype)


def quadratic(model: torch.nn.Module) -> torch.Tensor:
    return sum(((p.float() - 1) ** 2).sum() for p in model.parameters()) / 2  # type: ignore[return-value]


def direction(model: torch.nn.Module, seed: int, step: int) -> dict[str, torch.Tensor]:
    """The direction by its definition."""
    return {
        n: torch.from_numpy(gaussian(noise_key(seed, step, 0, n), 0, p.numel())).reshape(p.shape)
        for n, p in model.named_parameters()
    }


def test_estimate_is_the_spsa_formula():
    model = linear()
    before = copy.deepcopy(model.state_dict())
    optimizer = MeZO(model.named_parameters(), lr=0.1, eps=1e-2, seed=3)
    estimate = optimizer.estimate(lambda: quadratic(model))
    z = direction(model, seed=3, step=0)
    # For a quadratic with unit curvature the central difference is exact: z . (theta - 1).
    expected = sum((z[n] * (before[n] - 1)).sum() for n in z)
    assert estimate.projected_grad == pytest.approx(float(expected), rel=1e-3)
    assert estimate.loss == pytest.approx((estimate.plus + estimate.minus) / 2)
    for name, value in before.items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-6)


def test_step_moves_along_the_direction_with_decay():
    model = linear()
    before = copy.deepcopy(model.state_dict())
    optimizer = MeZO(model.named_parameters(), lr=0.1, eps=1e-2, weight_decay=0.5, seed=3)
    loss = optimizer.step(lambda: quadratic(model))
    assert optimizer.last is not None
    z = direction(model, seed=3, step=0)
    for name, value in before.items():
        expected = value * (1 - 0.1 * 0.5) - 0.1 * optimizer.last.projected_grad * z[name]
        assert torch.allclose(model.state_dict()[name], expected, atol=1e-5)
    assert loss == optimizer.last.loss
    assert optimizer.steps_done == 1


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_converges_on_a_quadratic(distribution, dtype):
    model = linear(dtype)
    eps = 1e-3 if dtype == torch.float32 else 1e-1
    optimizer = MeZO(model.named_parameters(), lr=0.02, eps=eps, noise=CounterNoise(distribution))
    start = quadratic(model).item()
    for _ in range(300):
        optimizer.step(lambda: quadratic(model))
    assert quadratic(model).item() < 0.05 * start


def test_the_direction_depends_on_names_and_not_on_order_or_groups():
    moved = []
    for arrange in (
        lambda m: list(m.named_parameters()),
        lambda m: list(m.named_parameters())[::-1],
        lambda m: [{"params": [p]} for p in m.named_parameters()],
    ):
        model = linear()
        optimizer = MeZO(arrange(model), lr=0.1, eps=1e-2, seed=1)
        optimizer.step(lambda model=model: quadratic(model))
        moved.append(model.state_dict())
    for other in moved[1:]:
        for name, value in moved[0].items():
            assert torch.allclose(value, other[name], atol=1e-6)


def test_accumulated_estimates_are_one_estimate_of_the_whole_batch():
    data = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))

    def loss(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return (model(rows) ** 2).mean()

    whole, parts = linear(), linear()
    one = MeZO(whole.named_parameters(), lr=0.1, eps=1e-2)
    one.step(lambda: loss(whole, data))
    many = MeZO(parts.named_parameters(), lr=0.1, eps=1e-2)
    for rows in (data[:2], data[2:8]):  # unlike sizes: weights count
        many.estimate(lambda rows=rows: loss(parts, rows), weight=len(rows))
    many.step()
    assert one.last is not None
    assert many.last is not None
    assert many.last.loss == pytest.approx(one.last.loss, rel=1e-5)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_state_round_trip_continues_the_same_run():
    straight, resumed = linear(), linear()
    a = MeZO(straight.named_parameters(), lr=0.05, eps=1e-2, seed=7)
    for _ in range(6):
        a.step(lambda: quadratic(straight))
    b = MeZO(resumed.named_parameters(), lr=0.05, eps=1e-2, seed=7)
    for _ in range(3):
        b.step(lambda: quadratic(resumed))
    c = MeZO(resumed.named_parameters(), lr=0.05, eps=1e-2, seed=99)
    c.load_state_dict(copy.deepcopy(b.state_dict()))
    for _ in range(3):
        c.step(lambda: quadratic(resumed))
    for x, y in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_skipped_and_counted(bad):
    model = linear()
    optimizer = MeZO(model.named_parameters(), lr=0.1, eps=1e-2, max_skipped=3)
    optimizer.step(lambda: bad)
    optimizer.step(lambda: quadratic(model))
    before = copy.deepcopy(model.state_dict())
    optimizer.step(lambda: bad)
    optimizer.step(lambda: bad)
    assert optimizer.skipped == 3
    assert optimizer.steps_done == 4
    for name, value in before.items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-6)
    with pytest.raises(DivergenceError, match="3 steps in a row"):
        optimizer.step(lambda: bad)


def test_a_closure_that_raises_leaves_the_weights():
    model = linear()
    before = copy.deepcopy(model.state_dict())
    optimizer = MeZO(model.named_parameters(), lr=0.1, eps=1e-2)
    calls = []

    def closure() -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyError("broken batch")
        return 1.0

    with pytest.raises(KeyError):
        optimizer.estimate(closure)
    for name, value in before.items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-6)


def test_no_gradients_are_recorded():
    model = linear()
    optimizer = MeZO(model.named_parameters(), lr=0.1, eps=1e-2)
    seen = []

    def closure() -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return quadratic(model)

    optimizer.step(closure)
    assert seen == [False, False]


def test_frozen_parameters_and_empty_groups_are_left_out():
    model = linear()
    model.bias.requires_grad_(False)
    bias = model.bias.clone()
    groups = [{"params": [("weight", model.weight)]}, {"params": [("bias", model.bias)], "weight_decay": 0.0}]
    optimizer = MeZO(groups, lr=0.1, eps=1e-2)
    optimizer.step(lambda: quadratic(model))
    assert torch.equal(model.bias, bias)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": 0.0}, "eps must be above 0"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": math.nan}, "lr must be at least 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"shaping": "sorted"}, "unknown shaping"),
    ],
)
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        MeZO(linear().named_parameters(), **arguments)


def test_names_are_needed_and_something_to_train():
    with pytest.raises(ValueError, match="named_parameters"):
        MeZO(linear().parameters())
    model = linear().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        MeZO(model.named_parameters())
    with pytest.raises(RuntimeError, match="no estimate to apply"):
        MeZO(linear().named_parameters()).step()
    with pytest.raises(ValueError, match="unknown noise distribution"):
        CounterNoise("cauchy")


def test_works_with_a_scheduler():
    model = linear()
    optimizer = MeZO(model.named_parameters(), lr=0.1, eps=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step(lambda: quadratic(model))
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.05, 0.1 / 3])


@pytest.mark.parametrize("shaping", ["none", "rank", "zscore"])
def test_several_samples_average_their_directions(shaping):
    model = linear()
    before = copy.deepcopy(model.state_dict())
    optimizer = MeZO(model.named_parameters(), lr=0.1, eps=1e-2, seed=3, samples=3, shaping=shaping)
    optimizer.step(lambda: quadratic(model))
    assert optimizer.last is not None
    grads = optimizer.last.projected_grads
    assert len(grads) == 3
    for name, value in before.items():
        expected = value.clone()
        for sample, grad in enumerate(grads):
            z = torch.from_numpy(gaussian(noise_key(3, 0, sample, name), 0, value.numel())).reshape(value.shape)
            expected -= 0.1 * grad * z / 3
        assert torch.allclose(model.state_dict()[name], expected, atol=1e-4)
    losses = [loss for pair in optimizer.last.losses for loss in pair]
    shaped = [grad * 2e-2 for grad in grads]
    if shaping == "rank":
        ranks = {loss: rank / 5 - 0.5 for rank, loss in enumerate(sorted(losses))}
        assert shaped == pytest.approx([ranks[plus] - ranks[minus] for plus, minus in optimizer.last.losses], rel=1e-4)
    if shaping == "zscore":
        deviation = torch.tensor(losses, dtype=torch.float64).std(correction=0).item()
        expected = [(plus - minus) / deviation for plus, minus in optimizer.last.losses]
        assert shaped == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("shaping", ["none", "rank", "zscore"])
def test_equal_probes_move_nothing_and_are_counted(shaping):
    model = linear()
    before = copy.deepcopy(model.state_dict())
    optimizer = MeZO(model.named_parameters(), lr=0.1, eps=1e-2, samples=2, shaping=shaping)
    optimizer.step(lambda: 0.25)
    assert optimizer.zero_steps == 1
    for name, value in before.items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-6)
