"""Short cuts of probes are held to the plain way in float32: rounding refuses no right one, and hides no wrong one."""

import random

import pytest
import torch
from support.families import tiny

from justforward.optim import MeZO
from justforward.optim.build import build
from justforward.optim.directions.base import Owners
from justforward.optim.methods import METHODS
from justforward.optim.probes.closures import Shares
from justforward.optim.probes.just_in_time import JustInTimeProbe
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example

COUNT = 6


class Reversed(Owners):
    """Tells modules of every row that its direction is another's."""

    def tell(self, rows, kept, width):
        super().tell(COUNT - 1 - rows, kept, width)


def measured(family: str, name: str, dtype: torch.dtype, *, wrong: bool = False) -> JustInTimeProbe:
    """The probe of one estimate of a method with a direction for every example."""
    model, method, chance = tiny(family, dtype=dtype), METHODS[name], random.Random(0)
    engine, objective = ScoringEngine(model), Classification()
    prompts = [tuple(chance.choices(range(8, 90), k=20)) for _ in range(COUNT)]
    examples = [Example(tuple(Row((*prompt, option), 20) for option in (5, 6)), 0) for prompt in prompts]
    whole, batch = objective.batch(engine, examples), objective.batch(engine, examples, tuple(range(COUNT)))
    alone = [objective.batch(engine, [one]) for one in examples]

    def together(owners: Owners):
        return objective.measure_shares(engine, batch, COUNT, Reversed(owners.numbers) if wrong else owners)

    shares = Shares(COUNT, lambda i: objective.measure(engine, alone[i]).loss, together)
    directions, rule = build(method.directions, method.rule, {}, method.settings)
    mezo = MeZO(
        model.named_parameters(), eps=1e-2, model=model, probe="just_in_time", noise=directions, rule=rule,
        samples=COUNT, split=True,
    )  # fmt: skip
    mezo.estimate(lambda: objective.measure(engine, whole).loss, shares=shares)
    assert isinstance(mezo.probe, JustInTimeProbe)
    assert len(mezo.probe.reached or ()) == len(list(model.parameters()))
    return mezo.probe


@pytest.mark.parametrize(
    ("family", "dtype"), [("opt", torch.bfloat16), ("qwen2", torch.bfloat16), ("llama", torch.float16)]
)
@pytest.mark.parametrize("name", ["eggroll", "grzo"])
@torch.no_grad()
def test_a_right_one_is_taken(name, family, dtype):
    assert measured(family, name, dtype).divides


@pytest.mark.parametrize("name", ["eggroll", "grzo"])
@torch.no_grad()
def test_a_wrong_one_is_seen(name):
    assert not measured("llama", name, torch.bfloat16, wrong=True).divides
