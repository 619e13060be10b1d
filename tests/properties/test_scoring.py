"""The engine equals plain scoring, one row at a time, for any rows, any budget, any order, on every family."""

import functools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cases import cases
from support.families import CONFIGS, HARD_CONFIGS, PLAIN_CONFIGS, VOCABULARY, WINDOW, tiny

from justforward.scoring import ScoringEngine, make_plan
from justforward.scoring.prompts import Row

FAMILIES = [*CONFIGS, *PLAIN_CONFIGS]
token = st.integers(3, VOCABULARY - 1)


@st.composite
def groups(draw: st.DrawFn) -> list[Row]:
    """Prompts with options behind a beginning that may be shared, like ICL; unlike lengths; in any order."""
    shared = tuple(draw(st.lists(token, max_size=40)))
    rows = []
    for _ in range(draw(st.integers(1, 4))):
        prompt = (*shared, *draw(st.lists(token, min_size=1, max_size=20)))
        for _ in range(draw(st.integers(1, 4))):
            option = tuple(draw(st.lists(token, min_size=1, max_size=5)))
            start = draw(st.sampled_from([len(prompt), 1]))
            rows.append(Row(prompt + option, start))
    return draw(st.permutations(rows))


def one_by_one(model: torch.nn.Module, rows: list[Row]) -> torch.Tensor:
    """The reference: every row alone, logits everywhere."""
    values = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.tokens])).logits[0].float()
        logprobs = torch.log_softmax(logits, dim=-1)
        values += [logprobs[i - 1, row.tokens[i]] for i in range(row.start, len(row.tokens))]
    return torch.stack(values)


@pytest.fixture(scope="module")
def engines():
    return {family: ScoringEngine(tiny(family)) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@cases(12)
@given(rows=groups(), budget=st.sampled_from([1, 64, 4096]))
@torch.no_grad()
def test_equal_to_one_row_at_a_time(engines, family, rows, budget):
    engine = engines[family]
    engine.token_budget = budget
    expected = one_by_one(engine.model, rows)
    scores = engine.score(rows)
    assert torch.allclose(scores.token_logprobs, expected, atol=1e-5)
    assert scores.lengths.tolist() == [len(r.tokens) - r.start for r in rows]
    parts = expected.split(scores.lengths.tolist())
    assert torch.allclose(scores.sums(), torch.stack([p.sum() for p in parts]), atol=1e-4)
    assert torch.allclose(scores.means(), torch.stack([p.mean() for p in parts]), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_short_cuts_are_taken_where_the_family_allows(engines, family):
    shared = tuple(range(3, 43))
    rows = [Row((*shared, a, *option), len(shared) + 1) for a in (50, 51) for option in ((5, 6), (7, 8, 9))]
    engine = engines[family]
    engine.token_budget = 4096
    with torch.no_grad():
        engine.score(rows)
    expected = family in CONFIGS
    assert (engine.trees, engine.caches) == (expected, expected)


@cases(50)
@given(rows=groups(), budget=st.sampled_from([1, 32, 512]), share=st.booleans(), pack=st.booleans(), few=st.booleans())
def test_plan_keeps_to_its_budget_and_scores_every_token_once(rows, budget, share, pack, few):
    plan = make_plan(rows, token_budget=budget, share_prefix=share, pack_trees=pack, few_shapes=few)
    outputs = [o for forward in plan.forwards for o in forward.output.tolist()]
    assert sorted(outputs) == list(range(plan.lengths.sum()))
    for forward in plan.forwards:
        assert forward.input_ids.size <= budget or len(forward.input_ids) == 1
        assert forward.keep.sum() == len(set(forward.source.tolist()))
        assert not few or plan.prefix or forward.input_ids.shape[1] in (16, 32, 48, 64, 80, 96, 112, 128)
    assert few or plan.fed_tokens <= plan.plain_tokens or any(len(f.input_ids) > 1 for f in plan.forwards)
    if not pack:
        assert not plan.has_tree
    if not share:
        assert plan.prefix == ()


def test_one_token_options_cost_nothing_beyond_the_prompt():
    prompt = tuple(range(3, 23))
    rows = [Row((*prompt, option), len(prompt)) for option in (30, 31, 32, 33)]
    plan = make_plan(rows, token_budget=1024)
    assert plan.fed_tokens == len(prompt)
    assert plan.forwards[0].mask is None
    assert plan.forwards[0].keep.sum() == 1


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_gradients_equal_those_of_separate_rows(family):
    model = tiny(family)
    prompt = tuple(range(3, 23))
    rows = [Row(prompt + option, len(prompt)) for option in ((30,), (31, 32), (33, 34, 35))]
    gradients = []
    for short_cuts in (True, False):
        model.zero_grad()
        engine = ScoringEngine(model, short_cuts=short_cuts)
        plan = engine.plan(rows)
        assert plan.has_tree == short_cuts
        engine.run(plan).means().logsumexp(0).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-5), name


def questions(longest: int, shared: int = 0) -> list[Row]:
    """Three options of one to four tokens behind each of five prompts, the first of which has `longest` tokens."""
    chance = random.Random(longest)
    words = functools.partial(chance.choices, range(3, VOCABULARY))
    beginning, rows = words(k=shared), []
    for i in range(5):
        prompt = (*beginning, *words(k=chance.randint(2, longest - shared) if i else longest - shared))
        rows += [Row((*prompt, *words(k=chance.randint(1, 4))), len(prompt)) for _ in range(3)]
    return rows


LONG = 2 * WINDOW + 8


@pytest.mark.parametrize("family", HARD_CONFIGS)
@torch.no_grad()
def test_equal_to_one_row_at_a_time_where_short_cuts_fail(family):
    model = tiny(family)
    for rows in (questions(LONG), questions(LONG, shared=20)):
        assert torch.allclose(ScoringEngine(model).score(rows).token_logprobs, one_by_one(model, rows), atol=1e-4)


@pytest.mark.parametrize("family", [name for name in HARD_CONFIGS if name != "xlstm"])  # it takes no other dtype
@torch.no_grad()
def test_as_near_as_rounding_explains_where_short_cuts_fail(family):
    model, rows = tiny(family, dtype=torch.bfloat16), questions(LONG, shared=20)
    scores, alone = ScoringEngine(model).score(rows).token_logprobs, one_by_one(model, rows)
    exact = one_by_one(model.float(), rows)
    rounding, error = ((values - exact).square().mean().sqrt() for values in (alone, scores))
    assert error < 2 * rounding + 1e-3


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt_neo", "llama4", "mistral_long"])
def test_a_proof_holds_up_to_its_length(family):
    """Rows within the window are packed; longer ones are not, whichever come first."""
    model = tiny(family)
    short, long = questions(WINDOW // 3), questions(LONG)
    for order in ([short, long, short], [long, short, long]):
        engine = ScoringEngine(model)
        for rows in order:
            assert engine.plan(rows).has_tree == (rows is short)


def test_a_wrong_short_cut_is_found_out_and_left_alone(caplog):
    model = tiny("llama")
    forward = model.forward

    def ignores_positions(*args, position_ids=None, logits_to_keep=0, cache=None, **kwargs):
        return forward(*args, logits_to_keep=logits_to_keep, cache=cache, **kwargs)

    model.forward = ignores_positions
    prompt = tuple(range(3, 15))  # too short for a cache
    rows = [Row(prompt + option, len(prompt)) for option in ((30, 31), (32, 33, 34))]
    engine = ScoringEngine(model)
    with torch.no_grad():
        scores = engine.score(rows)
        assert engine.trees is False
        assert torch.allclose(scores.token_logprobs, one_by_one(model, rows), atol=1e-5)
    assert "rows are fed one by one" in caplog.text
