"""What every method must do. A new one is a line in METHODS, and is held to all of this."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from support.families import tiny
from torch import Tensor, nn

from justforward.optim import DivergenceError, MeZO
from justforward.optim.build import build
from justforward.optim.directions.base import DIRECTIONS, Directions, Owners, Place
from justforward.optim.directions.flipped import Flipped
from justforward.optim.methods import METHODS, Method
from justforward.optim.probes import modules
from justforward.optim.probes.closures import Copies, Shares
from justforward.optim.probes.just_in_time import JustInTimeProbe
from justforward.optim.rules.base import RULES
from justforward.optim.rules.estimate import Estimate

NAMES = sorted(METHODS)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SMALL = {"rank": 4, "refresh": 3, "sparsity": 0.25}
"""A rank below the tiny model's sides, a window that ends within a short run, and most weights moved."""
RATES = {
    **dict.fromkeys(("mezo", "mezo-momentum", "lozo", "subzero", "sparse-mezo"), 1e-2),
    **{"conmezo": 3e-3, "fzoo": 3e-5, "subzero+": 1e-1},
}
"""Learning rates of the regression below, but 3e-2."""
SAMPLES = 4
IDS = torch.randint(3, 97, (4, 12), generator=torch.Generator().manual_seed(0))
PLAIN = [name for name in NAMES if METHODS[name].rule == "sgd"]
"""Methods whose step is a multiple of the estimate itself."""
SPLIT = [name for name in NAMES if METHODS[name].split]
UNBIASED = ["dense", "low_rank", "subspace", "outer", "flipped"]


@pytest.fixture(params=NAMES)
def method(request) -> Method:
    return METHODS[request.param]


@pytest.fixture(params=["one by one", "all at once"])
def _few(request, monkeypatch):
    """Tiny weights just in time, one by one as large ones are; or all at once before the forward begins."""
    if request.param == "one by one":
        monkeypatch.setattr(modules, "FEW", 0)


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    return tiny("llama", dtype=dtype)


def optimizer(model: nn.Module, method: Method, *, lr: float = 1e-3, **settings) -> MeZO:
    directions, rule = build(
        method.directions, method.rule, {}, {**method.settings, **SMALL, "distribution": method.distribution}
    )
    samples = min(method.samples, SAMPLES)
    made = {"eps": 1e-3, "samples": samples, "sides": method.sides, "split": method.split, "shaping": method.shaping}
    made["probe"] = "just_in_time"
    return MeZO(
        model.named_parameters(), lr=lr, model=model, noise=directions, rule=rule, seed=5, **{**made, **settings}
    )


def loss(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, labels=IDS).loss.float()


def shares(model: nn.Module, mezo: MeZO) -> Shares | None:
    """A row of IDS for each direction, where directions divide the batch."""
    if not mezo.split:
        return None
    assert mezo.samples == len(IDS)

    def alone(i: int) -> Tensor:
        return model(input_ids=IDS[i : i + 1], labels=IDS[i : i + 1]).loss.float()

    def together(owners: Owners) -> Tensor:
        owners.tell(torch.arange(len(IDS)), torch.ones_like(IDS, dtype=torch.bool), IDS.shape[1])
        logits = model(input_ids=IDS).logits[:, :-1].float()
        return nn.functional.cross_entropy(logits.transpose(1, 2), IDS[:, 1:], reduction="none").mean(1)

    return Shares(mezo.samples, alone, together)


def estimate(mezo: MeZO, model: nn.Module) -> Estimate:
    return mezo.estimate(lambda: loss(model), shares=shares(model, mezo))


def step(mezo: MeZO, model: nn.Module) -> None:
    estimate(mezo, model)
    mezo.step()


def measure(mezo: MeZO, function: Callable[[], Tensor]) -> Estimate:
    """The same for a function that is no model: every direction's share is all of it."""
    return mezo.estimate(function, shares=Shares(mezo.samples, lambda _: function()) if mezo.split else None)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])


def test_every_part_has_a_method():
    assert {m.directions for m in METHODS.values()} == set(DIRECTIONS.names())
    assert {m.rule for m in METHODS.values()} == set(RULES.names())


def test_forwards_per_step_are_the_documented_number(method, request):
    model = model_of()
    mezo = optimizer(model, method)
    step(mezo, model)  # the first step checks the probe
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    step(mezo, model)
    assert len(calls) == dataclasses.replace(method, samples=mezo.samples).forwards
    assert method.forwards == {"fzoo": 9, "subzero+": 100}.get(request.node.callspec.params["method"], 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("_few")
def test_probing_leaves_every_bit(method, dtype):
    model = model_of(dtype)
    before = weights(model)
    estimate(optimizer(model, method), model)
    assert same(before, weights(model))


@pytest.mark.usefixtures("_few")
def test_every_probe_measures_the_same(method):
    model = model_of()
    measured = [estimate(optimizer(model, method, probe=probe), model).losses for probe in ("copy", "just_in_time")]
    for a, b in zip(*measured, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_the_direction_that_is_applied_is_the_one_that_was_probed(name):
    """At every step, the first of a window included."""
    model = model_of()
    mezo = optimizer(model, METHODS[name], lr=1e-2)
    for _ in range(2 * SMALL["refresh"] + 1):
        before = weights(model)
        estimate(mezo, model)
        probed = []
        for sample in range(mezo.samples):
            mezo._direction(sample).add_(1.0)
            probed.append(flat(weights(model)) - flat(before))
            with torch.no_grad():
                for p, old in zip(model.parameters(), before, strict=True):
                    p.copy_(old)
        mezo.step()
        assert mezo.last is not None
        expected = sum(g * z for g, z in zip(mezo.last.projected_grads, probed, strict=True))
        moved = flat(before) - flat(weights(model))
        assert isinstance(expected, Tensor)
        assert torch.cosine_similarity(moved, expected, dim=0) > 0.999


@pytest.mark.parametrize("name", DIRECTIONS.names())
def test_noise_of_different_places_is_uncorrelated(name):
    """Two tensors of one shape, two seeds, two steps, two members."""
    directions, _ = build(name, settings={}, defaults={**SMALL, "rank": 16})
    p, rows = torch.randn(64, 96), slice(0, 64)
    base = directions.values("a", p, Place(1, 2, 0), rows).flatten()
    others = [
        directions.values("b", p, Place(1, 2, 0), rows),
        directions.values("a", p, Place(2, 2, 0), rows),
        directions.values("a", p, Place(1, 3, 0), rows),
        directions.values("a", p, Place(1, 2, 1), rows),
    ]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([base, other.flatten()]))[0, 1]) < 0.25
    again = directions.values("a", p, Place(1, 2, 0), rows).flatten()
    assert torch.equal(again, base)


@pytest.mark.parametrize("name", DIRECTIONS.names())
def test_rows_of_a_direction_are_those_of_the_whole(name):
    directions, _ = build(name, settings={}, defaults=SMALL)
    p, place = torch.randn(10, 16), Place(1, 2, 0)
    whole = directions.values("a", p, place, slice(0, 10))
    assert torch.allclose(directions.values("a", p, place, slice(3, 7)), whole[3:7], atol=1e-6)
    chosen = torch.tensor([9, 0, 0, 4])
    assert torch.allclose(directions.values("a", p, place, chosen), whole[chosen], atol=1e-6)
    factors = directions.factors("a", p, place)
    if factors is not None:
        assert torch.allclose(factors[0] @ factors[1].T, whole, atol=1e-5)


@pytest.mark.parametrize("name", UNBIASED)
def test_the_estimate_is_unbiased(name):
    """On a linear function the mean of (z . g) z is g: all entries within five standard errors."""
    directions, _ = build(name, settings={}, defaults={"rank": 4, "refresh": 1})
    p, rows = torch.zeros(8, 12), slice(0, 8)
    g = torch.randn(8, 12, generator=torch.Generator().manual_seed(1))
    draws = torch.stack([directions.values("a", p, Place(0, step, 0), rows) for step in range(4000)]).double()
    estimates = draws * (draws * g).sum((1, 2), keepdim=True)
    errors = (estimates.mean(0) - g) / (estimates.std(0) / math.sqrt(len(draws)))
    assert errors.abs().max() < 5
    assert errors.pow(2).mean().sqrt() < 1.2


def test_sparse_directions_leave_large_weights_alone():
    directions, _ = build("sparse", settings={"sparsity": 0.75})
    p = torch.randn(40, 50)
    z = directions.values("a", p, Place(0, 0, 0), slice(0, 40))
    moved = z != 0
    assert moved.float().mean() == pytest.approx(0.25, abs=0.001)
    assert p[moved].abs().max() <= p[~moved].abs().min()


def test_a_cone_is_around_the_momentum():
    directions, _ = build("cone", settings={"angle": 1.0, "beta": 0.5})
    p, place = torch.randn(60, 50), Place(0, 0, 0)
    first = directions.values("a", p, place, slice(0, 60)).flatten()
    directions.learn([("a", p)], place, [2.0])
    second = directions.values("a", p, place._replace(step=1), slice(0, 60)).flatten()
    assert torch.cosine_similarity(first, second, dim=0) == pytest.approx(math.cos(1.0), abs=0.03)
    assert second.norm() == pytest.approx(math.sqrt(3000), rel=0.03)


def test_equal_losses_give_a_zero_step(method):
    model = model_of()
    before = weights(model)
    mezo = optimizer(model, method)
    for _ in range(2):
        measure(mezo, lambda: torch.tensor(0.5))
        mezo.step()
    assert same(before, weights(model))
    assert mezo.zero_steps == 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_loss_that_is_not_finite_skips_the_step(method, dtype):
    model = model_of(dtype)
    before = weights(model)
    mezo = optimizer(model, method, max_skipped=3)
    for _ in range(2):
        measure(mezo, lambda: torch.tensor(math.nan))
        mezo.step()
    assert same(before, weights(model))
    assert mezo.skipped == 2
    measure(mezo, lambda: torch.tensor(math.inf))
    with pytest.raises(DivergenceError):
        mezo.step()


def test_what_a_constant_or_a_factor_of_the_loss_does(method):
    """A constant changes nothing; a factor multiplies the step, or nothing where a scale divides by it."""
    steps = []
    for factor, constant in ((1.0, 0.0), (1.0, 7.0), (4.0, 0.0)):
        model = model_of().double().float()
        before = flat(weights(model))
        target = torch.linspace(-1, 1, before.numel(), dtype=torch.float64)
        mezo = optimizer(model, method, probe="copy")
        measure(mezo, lambda m=model, t=target, a=factor, b=constant: a * (flat(list(m.parameters())) * t).sum() + b)
        mezo.step()
        steps.append(flat(weights(model)) - before)
    assert (steps[1] - steps[0]).norm() < 1e-3 * steps[0].norm()
    scale_free = method.shaping != "none" or method.rule in ("sign", "adam", "rebuilt_adam")
    expected = steps[0] if scale_free else 4 * steps[0]
    assert (steps[2] - expected).norm() < 2e-3 * expected.norm()


@pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, "nearest"), (torch.bfloat16, "compensated")], ids=["float32", "bfloat16"]
)
def test_stopped_and_continued_is_the_same_run(method, dtype, rounding, tmp_path):
    """Through a saved state; and replayed from what was measured. In float32 every step of two windows is a stop."""
    model = model_of(dtype)
    start = copy.deepcopy(model)
    mezo = optimizer(model, method, rounding=rounding)
    measured, saved = [], []
    for _ in range(2 * SMALL["refresh"]):
        saved.append((copy.deepcopy(model.state_dict()), copy.deepcopy(mezo.state_dict())))
        step(mezo, model)
        assert mezo.last is not None
        measured.append(mezo.last.projected_grads)

    for at, (model_state, state) in list(enumerate(saved))[:: 1 if dtype == torch.float32 else 3]:
        torch.save(state, tmp_path / "state.pt")
        other = copy.deepcopy(start)
        other.load_state_dict(model_state)
        again = optimizer(other, method, rounding=rounding)
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for _ in range(at, len(measured)):
            step(again, other)
        assert same(weights(model), weights(other)), f"stopped before step {at}"

    replayed = optimizer(start, method, rounding=rounding)
    for grads in measured:
        replayed.apply_logged(grads)
    assert same(weights(model), weights(start))


def test_rewound_it_is_the_same_run(method):
    model = model_of()
    start = copy.deepcopy(model.state_dict())
    mezo = optimizer(model, method)
    ends = []
    for _ in range(2):
        for _ in range(SMALL["refresh"] + 1):
            step(mezo, model)
        ends.append(weights(model))
        model.load_state_dict(start)
        mezo.rewind()
    assert same(*ends)


def test_state_is_float32_and_counted(method):
    model = model_of(torch.bfloat16)
    mezo = optimizer(model, method, rounding="nearest")
    for _ in range(2):
        step(mezo, model)
    tensors: list[Tensor] = [t for slots in mezo._progress.get("kept", {}).values() for t in slots.values()]
    assert isinstance(mezo.noise, Directions)
    tensors += [value for value in mezo.noise.state().values() if isinstance(value, Tensor)]
    assert {t.dtype for t in tensors} <= {torch.float32}
    assert sum(4 * t.numel() for t in tensors) <= mezo.state_bytes


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_more_than_a_random_walk_does(name):
    """A regression of 8 outputs: the loss falls below two thirds, where steps of random signs do not get."""
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    ends = []
    for walk in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8))
        target = x @ torch.randn(16, 8, generator=torch.Generator().manual_seed(4))
        signs = torch.randn(10_000, generator=torch.Generator().manual_seed(5)).sign()
        mezo = optimizer(model, METHODS[name], lr=RATES.get(name, 3e-2))
        first = float(nn.functional.mse_loss(model(x), target))
        for step in range(300):
            measure(mezo, lambda model=model, target=target: nn.functional.mse_loss(model(x), target))
            if walk:
                mezo._pending[:-1] = [1 + (v - 1) * float(signs[step]) for v in mezo._pending[:-1]]
            mezo.step()
        ends.append(float(nn.functional.mse_loss(model(x), target)) / first)
    # Weights that outgrow Sparse-MeZO's limit are no longer moved.
    assert ends[0] < (0.85 if name == "sparse-mezo" else 0.67)
    assert ends[1] > ends[0] + 0.1


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "qwen2", "gemma3", "gpt_neox", "mixtral"])
@pytest.mark.parametrize("name", SPLIT)
@pytest.mark.usefixtures("_few")
def test_rows_with_directions_of_their_own_are_as_one_by_one(name, family):
    model = tiny(family)
    measured = []
    for probe in ("copy", "just_in_time"):
        mezo = optimizer(model, METHODS[name], probe=probe)
        mezo.shaping = "none"
        measured.append(estimate(mezo, model).losses)
        if isinstance(mezo.probe, JustInTimeProbe):
            assert mezo.probe.divides
    for a, b in zip(*measured, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "mixtral"])
@pytest.mark.parametrize("name", ["outer", "low_rank", "subspace"])
def test_directions_that_share_passes_measure_what_they_do_alone(name, family):
    model = tiny(family)
    rows = IDS[:2]

    def losses(count: int, owners: Owners) -> Tensor:
        owners.tell(torch.arange(count).repeat_interleave(2), torch.ones(2 * count, 12, dtype=torch.bool), 12)
        places = torch.arange(12).repeat(2 * count, 1)  # for each row, as the scoring engine gives them
        logits = model(input_ids=rows.repeat(count, 1), position_ids=places).logits[:, :-1].float()
        targets = rows[:, 1:].repeat(count, 1)
        found = nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return found.view(count, -1).mean(1)

    measured = []
    for copies in (None, Copies(2, losses)):
        method = Method("", directions=name, samples=5, sides=1)
        mezo = optimizer(model, method, samples=5, eps=1e-2)
        calls = []
        hook = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for _ in range(2):
            mezo._clear()
            calls.clear()
            found = mezo.estimate(lambda: model(input_ids=rows, labels=rows).loss.float(), copies=copies)
        hook.remove()
        measured.append((found.losses, len(calls)))
    assert [calls for _, calls in measured] == [6, 4]  # the base, two passes of two copies, and the fifth alone
    for a, b in zip(*(losses for losses, _ in measured), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_signs_have_full_rank():
    directions, _ = build("flipped")
    assert isinstance(directions, Flipped)
    drawn = [directions.signs("a", torch.zeros(64, 96), Place(0, 0, sample)) for sample in range(32)]
    for signs in zip(*drawn, strict=True):
        matrix = torch.stack(signs)
        assert set(matrix.unique().tolist()) == {-1.0, 1.0}
        assert torch.linalg.matrix_rank(matrix) == 32
        assert abs(matrix.mean()) < 0.1
