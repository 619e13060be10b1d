"""Linear probing on every family: the probe is the head's, saved and read back."""

import pytest
import torch
from support.families import CONFIGS, PLAIN_CONFIGS, VOCABULARY, tiny
from transformers import AutoModelForCausalLM

from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.linear_probe import linear_probe


def rows(count: int) -> list[Row]:
    """Prompts whose last token decides between two options."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(count):
        prompt = torch.randint(10, VOCABULARY, (6,), generator=generator).tolist()
        made.append(Row((*prompt, 8 + i % 2, 3 + i % 2), 7))
    return made


@pytest.mark.parametrize("family", [*CONFIGS, *PLAIN_CONFIGS])
def test_every_family_is_probed(family, tmp_path):
    model = tiny(family)
    engine = ScoringEngine(model)
    embeddings = model.get_input_embeddings()
    before = embeddings.get_parameter("weight").detach().clone()
    train = rows(24)
    probe = linear_probe(engine, train, early_stopping=True)
    assert probe.accuracy > 0.6  # chance is 0.5; features of some random models hardly see the last token
    assert torch.equal(embeddings.get_parameter("weight"), before)
    with torch.no_grad():
        own = engine.score([Row((*r.tokens[:-1], t), 7) for r in train for t in (3, 4)]).sums().view(-1, 2)
    right = [best == r.tokens[-1] - 3 for best, r in zip(own.argmax(dim=1).tolist(), train, strict=True)]
    assert sum(right) / len(right) == pytest.approx(probe.accuracy)  # the head is the probe
    model.save_pretrained(tmp_path)
    again = ScoringEngine(AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    with torch.no_grad():
        read = again.score([Row((*r.tokens[:-1], t), 7) for r in train for t in (3, 4)]).sums().view(-1, 2)
    assert torch.allclose(read, own, atol=1e-5)
