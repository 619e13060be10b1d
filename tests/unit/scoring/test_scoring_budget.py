"""Out of memory once: the budget is halved, nothing else changes. And what of the head is computed, in which dtype."""

import pytest
import torch
from support.families import tiny

from justforward.optim.scored_head import ScoredLinear, float32_linear
from justforward.scoring import ScoringEngine
from justforward.scoring.generation import GenerationSettings, Generator
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example

FULL = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def rows(lengths=(9, 12, 12, 15)) -> list[Row]:
    chance = torch.Generator().manual_seed(0)
    prompts = [tuple(torch.randint(5, 97, (n,), generator=chance).tolist()) for n in lengths]
    return [Row((*p, a, *more), len(p)) for p in prompts for a, more in ((7, ()), (8, ()), (7, (9, 10)))]


def runs_out(monkeypatch, engine, most, error=FULL):
    """Make passes of more than `most` tokens run out of memory; the sizes that were tried."""
    tried, call = [], engine._call

    def limited(**arguments):
        tried.append(arguments["input_ids"].numel())
        if tried[-1] > most:
            raise error
        return call(**arguments)

    monkeypatch.setattr(engine, "_call", limited)
    return tried


@pytest.mark.parametrize("trees", [True, False])
@torch.no_grad()
def test_a_pass_that_runs_out_of_memory_is_made_in_halves(monkeypatch, caplog, trees):
    engine = ScoringEngine(tiny("llama"), token_budget=512, short_cuts=trees)
    plan = engine.plan(rows())
    expected = engine.run(plan)
    largest = max(f.input_ids.size for f in plan.forwards)
    runs_out(monkeypatch, engine, largest - 1)
    scores = engine.run(plan)
    assert torch.allclose(scores.token_logprobs, expected.token_logprobs, atol=1e-5)
    assert engine.token_budget == 256
    assert caplog.text.count("the token budget is 256") == 1


@torch.no_grad()
def test_running_out_twice_is_an_error(monkeypatch):
    engine = ScoringEngine(tiny("llama"), token_budget=512)
    tried = runs_out(monkeypatch, engine, 0)
    with pytest.raises(RuntimeError, match="can't allocate"):
        engine.run(engine.plan(rows()))
    assert len(tried) <= 4  # the short cuts' proof has passes of its own


@torch.no_grad()
def test_other_errors_are_not_taken_for_it(monkeypatch):
    engine = ScoringEngine(tiny("llama"), token_budget=512)
    plan = engine.plan(rows())
    runs_out(monkeypatch, engine, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="do not match"):
        engine.run(plan)
    assert engine.token_budget == 512


class Letters:
    pad_token_id, eos_token_id = 0, 2

    def encode(self, text, add_special_tokens=False):
        return [96]

    def batch_decode(self, batch, skip_special_tokens=True):
        return [" ".join(map(str, row)) for row in batch.tolist()]


def test_generation_that_runs_out_of_memory_is_made_in_halves(monkeypatch, caplog):
    prompts = [(5, 6, 7), (8, 9, 10), (11, 12, 13), (14, 15, 16)]
    generator = Generator(tiny("llama"), Letters(), GenerationSettings(max_new_tokens=4), token_budget=512)
    expected = generator.generate(prompts)
    make = generator._generate

    def limited(batch):
        if len(batch) > 2:
            raise FULL
        return make(batch)

    monkeypatch.setattr(generator, "_generate", limited)
    assert generator.generate(prompts) == expected
    assert generator.token_budget == 256
    assert "taken in halves" in caplog.text
    monkeypatch.setattr(generator, "_generate", lambda batch: (_ for _ in ()).throw(FULL))
    with pytest.raises(RuntimeError, match="can't allocate"):
        generator.generate(prompts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_logits_of_16_bit_weights_are_float32(dtype):
    model = tiny("llama", dtype=dtype)
    one = Row(tuple(range(5, 25)), 19)
    hidden = model.model(torch.tensor([one.tokens[:-1]])).last_hidden_state[0, -1]
    exact = hidden.double() @ model.lm_head.weight.double().T
    engine = ScoringEngine(model)
    assert isinstance(model.lm_head, ScoredLinear)
    measured = engine.score([one]).token_logprobs[0].item()
    assert measured == pytest.approx(torch.log_softmax(exact, -1)[one.tokens[-1]].item(), abs=1e-5)
    rounded = torch.log_softmax((hidden @ model.lm_head.weight.T).float(), -1)[one.tokens[-1]].item()
    assert abs(rounded - measured) > 1e-5


def test_a_head_in_pieces_is_the_head(monkeypatch):
    x, weight, bias = torch.randn(2, 3, 8).half(), torch.randn(50, 8).half(), torch.randn(50).half()
    expected = x.float() @ weight.float().T + bias.float()
    monkeypatch.setattr("justforward.optim.scored_head.PIECE", 56)
    assert torch.allclose(float32_linear(x, weight, bias), expected, atol=1e-5)


@pytest.mark.parametrize("family", ["opt", "phi", "gemma"])
@torch.no_grad()
def test_only_the_candidates_logits_are_computed_where_the_others_cancel(family, monkeypatch):
    model = tiny(family)
    engine, objective = ScoringEngine(model), Classification()
    prompts = [(5, 6, 7, 8), (9, 10, 11)]
    examples = [Example(tuple(Row((*p, option), len(p)) for option in (30, 31, 32)), 1) for p in prompts]
    batch = objective.batch(engine, examples)
    assert not batch.normalise
    widths = []
    forward = ScoredLinear.forward
    monkeypatch.setattr(ScoredLinear, "forward", lambda m, x: widths.append((y := forward(m, x)).shape[-1]) or y)
    measured = objective.measure(engine, batch)
    assert widths == [3]
    expected = objective.evaluate(engine.run(batch.plan), batch)
    assert measured.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert measured.correct is not None
    assert expected.correct is not None
    assert torch.equal(measured.correct, expected.correct)
    longer = [Example((*e.rows, Row((*e.rows[0].tokens, 5), e.rows[0].start)), 0) for e in examples]
    assert objective.batch(engine, longer).normalise


def test_processes_that_share_a_model_make_one_forward_each_whatever_the_lengths():
    engine = ScoringEngine(tiny("opt"))
    rows = [Row((n, *range(3, 2 + n)), n - 1) for n in (90, 4, 5, 80, 6)]
    assert len(engine.plan(rows).forwards) > 1
    engine.one_forward = True
    assert len(engine.plan(rows).forwards) == 1
