"""`auto`: what is proposed where the right answer is known, and how the word passes through the arguments."""

import json
import math

import numpy as np
import pytest
import torch

from justforward.auto.measure import LossProbe, propose
from justforward.auto.rules import LADDER, SAFETY, propose_eps, propose_rate
from justforward.auto.settle import FILE_NAME, settle
from justforward.command_line.arguments import parse
from justforward.commands.cli import main

ZO = ["--trainer", "zo", "--num_train", "8", "--train_set_seed", "0"]
BOTH = ["zo_eps", "learning_rate"]


def ladder(slope: float, third: float, rounding: float, directions: int = 8) -> dict[float, list[float]]:
    """Loss differences 2 eps g + eps^3 t / 3 along directions with slopes g and third derivatives t, and noise."""
    draw = np.random.default_rng(0)
    slopes, thirds = slope * draw.standard_normal(directions), third * draw.standard_normal(directions)
    return {
        eps: list(2 * eps * slopes + eps**3 * thirds / 3 + rounding * draw.standard_normal(directions))
        for eps in LADDER
    }


@pytest.mark.parametrize("rounding", [1e-8, 1e-7, 1e-6, 1e-5])
@pytest.mark.parametrize("third", [1e3, 1e5, 1e7])
def test_eps_is_where_the_third_order_begins_to_show(rounding, third):
    found = propose_eps(ladder(slope=10, third=third, rounding=rounding))
    # eps^2 t / 6 is a tenth of the slope at the largest size wanted; or as large as rounding, if that is larger.
    by_slope = math.sqrt(6 * 0.1 * 10 / third)
    by_rounding = (3 * rounding / third) ** (1 / 3)
    assert max(by_slope, by_rounding) / 4 <= found.eps <= max(by_slope, by_rounding) * 4
    assert rounding / 3 <= found.rounding
    assert found.rounding <= rounding * 3 or third > 1e5


def test_eps_without_third_order_is_the_largest():
    assert propose_eps(ladder(slope=10, third=0, rounding=1e-7)).eps == LADDER[-1]


def test_sizes_that_16_bit_weights_swallow_do_not_count():
    differences = ladder(slope=10, third=1e4, rounding=1e-7)
    lost = {eps: [0.0] * 8 if eps < 1e-3 else values for eps, values in differences.items()}
    found = propose_eps(lost)
    assert found.eps == propose_eps(differences).eps
    assert [rung.eps for rung in found.rungs] == [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]


def test_where_rounding_is_never_small_the_smallest_error_counts():
    """As in bfloat16: sizes that are all noise agree with each other, and are not taken for it."""
    found = propose_eps(ladder(slope=10, third=1e5, rounding=0.01))
    assert not any(rung.agrees for rung in found.rungs)
    assert 3e-3 <= found.eps <= 3e-2
    assert "smallest error" in found.reason


def test_sizes_that_break_the_model_do_not_count():
    broken = {eps: [math.nan] * 8 if eps > 1e-2 else v for eps, v in ladder(10, 0, 1e-7).items()}
    assert propose_eps(broken).eps == 1e-2
    with pytest.raises(ValueError, match="give --zo_eps and --learning_rate numbers"):
        propose_eps({eps: [math.nan] * 8 for eps in LADDER})


def test_rate_is_that_of_the_largest_decrease():
    """Without noise of the batch: the best rate is 1 / curvature, and twice that no longer decreases."""
    found = propose_rate([[3.0, 3.0], [-2.0, -2.0]], [[100.0, 100.0], [100.0, 100.0]])
    assert found.learning_rate == pytest.approx(SAFETY / 100, rel=0.05)
    assert found.signal == 1
    assert "0.33 x 1.00" in found.reason


def test_noise_of_the_batch_lowers_the_rate_and_accumulation_raises_it():
    draw = np.random.default_rng(0)
    signal = draw.standard_normal((200, 1))
    gradients = (signal + 2 * draw.standard_normal((200, 4))).tolist()
    curvatures = [[50.0] * 4] * 200
    alone = propose_rate(gradients, curvatures)
    assert alone.signal == pytest.approx(1 / (1 + 4), rel=0.3)
    many = propose_rate(gradients, curvatures, batches_per_step=16)
    assert many.signal == pytest.approx(1 / (1 + 4 / 16), rel=0.1)
    assert propose_rate(gradients, curvatures, samples=4).learning_rate == pytest.approx(
        4 * alone.learning_rate, rel=0.02
    )


def test_curvature_of_both_signs_does_not_cancel():
    assert propose_rate([[1.0], [1.0]], [[100.0], [-100.0]]).curvature == 100
    with pytest.raises(ValueError, match="flat"):
        propose_rate([[1.0], [1.0]], [[0.0], [0.0]])
    assert "hidden by rounding" in propose_rate([[1.0]], [[100.0]], curvature_rounding=80.0).reason


class Quadratic(torch.nn.Module):
    """L = sum of h theta^2 / 2 + third theta^3 / 6."""

    def __init__(self, curvatures: torch.Tensor, third: float = 0.0, start: float = 1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full_like(curvatures, start))
        self.curvatures, self.third = curvatures, third

    def forward(self) -> torch.Tensor:
        return (self.curvatures * self.weight.double() ** 2 / 2 + self.third * self.weight.double() ** 3 / 6).sum()


@pytest.mark.parametrize("trace", [10.0, 1000.0])
def test_measured_rate_is_half_of_one_over_the_trace(trace):
    model = Quadratic(torch.full((400,), trace / 400))
    before = model.weight.detach().clone()
    found = propose(LossProbe(model, probe="copy"), [model.forward], names=BOTH)
    assert found.rate is not None
    assert SAFETY / trace / 1.3 <= found.rate.learning_rate <= SAFETY / trace * 1.3
    assert torch.equal(model.weight, before)


def test_measured_rate_trains_and_eight_times_as_much_diverges():
    from justforward import MeZO

    model = Quadratic(torch.linspace(0.1, 2, 200))
    rate = propose(LossProbe(model, probe="copy"), [model.forward], names=["learning_rate"]).values["learning_rate"]
    start = model().item()

    def trained(lr: float) -> float:
        fresh = Quadratic(model.curvatures)
        optimizer = MeZO(fresh.named_parameters(), lr=lr, eps=1e-3, probe="copy", seed=1)
        for _ in range(400):
            optimizer.step(lambda: fresh())
        return fresh().item()

    assert trained(rate) < start / 2
    assert trained(rate) < trained(rate / 8)
    assert not trained(8 * rate) < start


def test_measured_eps_of_a_cubic():
    model = Quadratic(torch.ones(200), third=3000.0)
    # Along z the slope is z . (h + t / 2), and the third derivative t sum z^3.
    found = propose(LossProbe(model, probe="copy"), [model.forward], names=["zo_eps"])
    assert found.eps is not None
    assert found.rate is None
    z3, z1 = math.sqrt(15 * 200) * 3000, math.sqrt(200) * 1501
    assert math.sqrt(0.6 * z1 / z3) / 4 <= found.eps.eps <= math.sqrt(0.6 * z1 / z3) * 4


def test_settled_values_are_kept_for_the_same_job_only(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        model = Quadratic(torch.ones(50))
        return propose(LossProbe(model, probe="copy"), [model.forward], names=["learning_rate"])

    def settled(record, *, anew=False):
        return settle(tmp_path, record, ["learning_rate"], measure, anew=anew)

    first = settled({"seed": 0, "learning_rate": 5e-5})
    (tmp_path / FILE_NAME).write_text(json.dumps(first))
    assert settled({"seed": 0, "learning_rate": 1.0}) == first
    assert len(calls) == 1
    settled({"seed": 1, "learning_rate": 5e-5})
    settled({"seed": 0, "learning_rate": 5e-5}, anew=True)
    assert len(calls) == 3
    (tmp_path / FILE_NAME).write_text("{")
    settled({"seed": 0, "learning_rate": 5e-5})
    assert len(calls) == 4


def test_the_word_passes_through_the_arguments():
    parsed = parse([*ZO, "--zo_eps", "auto", "--learning_rate=auto"])
    assert parsed.auto == ("zo_eps", "learning_rate")
    assert parsed.job.zo_eps == 1e-3
    assert "learning_rate" not in parsed.training_kwargs
    assert parse(parsed.command_line()) == parsed
    settled = parsed.with_values({"zo_eps": 0.01, "learning_rate": 3e-6})
    assert (settled.job.zo_eps, settled.training_kwargs["learning_rate"], settled.auto) == (0.01, 3e-6, ())
    assert parsed.with_values({"zo_eps": 0.01}).auto == ("learning_rate",)


# fmt: off
WRONG = [
    (["--zo_eps", "auto"], "--zo_eps auto is measured with MeZO's probes: use it with --trainer zo"),
    (["--trainer", "regular", *ZO[2:], "--learning_rate", "auto"], "--learning_rate auto is measured with MeZO's"),
    ([*ZO, "--learning_rate", "atuo"], "argument --learning_rate: expected a finite number or auto, got 'atuo'"),
    ([*ZO, "--weight_decay", "auto"], "argument --weight_decay: expected a finite number, got 'auto'"),
    ([*ZO, "--zo_eps", "auto", "--non_diff"], "--zo_eps auto measures slopes"),
    ([*ZO, "--learning_rate", "auto", "--zo_shaping", "rank"], "--learning_rate auto is for losses"),
    ([*ZO, "--zo_eps", "auto", "--fsdp"], "--zo_eps auto does not measure weights that processes share"),
]
# fmt: on


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[" ".join(words)[-40:] for words, _ in WRONG])
def test_where_auto_cannot_stand(words, said, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"justforward: error: {said}")
