"""The reference that benchmarks measure against computes what we do."""

import pytest
import torch
from support.families import tiny

from bench import textbook
from bench.workload import step_of
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example

PROMPTS = [(5, 6, 7, 8, 9), (10, 11, 12), (13, 14, 15, 16)]
# Raised inside PEFT 0.21.2 under transformers 5.24, which renamed what PEFT reads and passes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated"),
]


@pytest.mark.parametrize("candidates", [[(30,), (31,)], [(30, 31), (32,), (33, 34, 35)]])
@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
@torch.no_grad()
def test_its_loss_is_ours(family, candidates):
    model, objective = tiny(family), Classification()
    engine = ScoringEngine(model)
    examples = [Example(tuple(Row(p + c, len(p)) for c in candidates), 0) for p in PROMPTS]
    ours = objective.measure(engine, objective.batch(engine, examples)).loss.item()
    assert textbook.classification_loss(model, PROMPTS, candidates).item() == pytest.approx(ours, abs=1e-5)


def test_its_step_is_algorithm_1():
    weights = torch.nn.Parameter(torch.linspace(-1, 1, 50, dtype=torch.float64))
    before, eps, lr = weights.detach().clone(), 1e-3, 0.1
    plus, minus = textbook.step([weights], lambda: weights.square().sum(), lr=lr, eps=eps, seed=3)
    torch.manual_seed(3)
    z = torch.normal(mean=0, std=1, size=weights.size(), dtype=torch.float64)
    assert plus == pytest.approx((before + eps * z).square().sum().item())
    assert minus == pytest.approx((before - eps * z).square().sum().item())
    assert torch.allclose(weights.detach(), before - lr * (plus - minus) / (2 * eps) * z, atol=1e-9)


@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
def test_the_measured_step_trains(method):
    made = step_of("tiny", method=method, examples=2)
    before = [p.detach().clone() for p in made.model.parameters() if p.requires_grad]
    made.run()
    after = [p for p in made.model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    made.two_forwards()
    made.textbook()
