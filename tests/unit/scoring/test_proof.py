"""Short cuts are taken where they are proven, for the kinds and lengths that they are proven for."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.families import WINDOW, tiny
from support.older import NOT_YET

from justforward.compat import TORCH, full_precision
from justforward.optim.float32 import InFloat32
from justforward.scoring import ScoringEngine, make_plan
from justforward.scoring.plan import plan_alone
from justforward.scoring.prompts import Row
from justforward.scoring.proof import Kind, Proofs, Size, make_trial, needs

TREE, CACHE, PLAIN = Kind(True, False), Kind(False, True), Kind(False, False)


def rows(length: int = 40, *, shared: int = 0, seed: int = 0) -> list[Row]:
    """Three options each behind two prompts of so many tokens."""
    chance = random.Random(seed)
    beginning = chance.choices(range(3, 97), k=shared)
    prompts = [(*beginning, *chance.choices(range(3, 97), k=length - shared)) for _ in range(2)]
    return [Row((*p, *chance.choices(range(3, 97), k=n)), length) for p in prompts for n in (1, 2, 3)]


@st.composite
def many_rows(draw: st.DrawFn) -> list[Row]:
    """From few or many different tokens, which may share a beginning."""
    chance, tokens = draw(st.randoms(use_true_random=False)), range(draw(st.sampled_from([2, 5, 1000])))
    shared, made = tuple(chance.choices(tokens, k=chance.choice([0, 1, 20, 300]))), []
    for _ in range(chance.randint(1, 8)):
        prompt = shared + tuple(chance.choices(tokens, k=chance.randint(1, 60)))
        for _ in range(chance.randint(1, 4)):
            option = tuple(chance.choices(tokens, k=chance.choice([1, 1, 4, 30])))
            made.append(Row(prompt + option, chance.choice([1, len(prompt)])))
    return made


@settings(max_examples=60, deadline=None)
@given(many_rows(), st.sampled_from([1, 64, 512, 4096]), st.booleans(), st.booleans())
def test_rows_are_made_of_any_size_that_a_plan_has(made, budget, share, pack):
    plan = make_plan(made, token_budget=budget, share_prefix=share, pack_trees=pack)
    for kind, size in needs(plan, budget).items():
        trial = make_trial(kind, size, made, budget)
        assert trial is not None
        assert needs(trial.plan, budget)[kind].covers(size)
        assert all(one.input_ids.size <= budget or len(one.input_ids) == 1 for one in trial.plan.forwards)
        assert trial.compared


@pytest.mark.parametrize("family", sorted({"falcon_h1", "lfm2", "minimax", "qwen3_next", "recurrent_gemma"} - NOT_YET))
@torch.no_grad()
def test_a_leak_between_branches_is_seen_through_bfloat16(family):
    """A state runs on through all rows of a tree. What it changes in short options is less than rounding does."""
    engine = ScoringEngine(tiny(family, dtype=torch.bfloat16))
    assert not engine.plan(rows()).has_tree
    assert engine.trees is False


@pytest.mark.parametrize("family", ["llama", "mixtral", "opt", "gemma2"])
@torch.no_grad()
def test_rounding_is_no_error(family):
    engine = ScoringEngine(tiny(family, dtype=torch.bfloat16))
    assert engine.plan(rows(WINDOW - 4, shared=20)).prefix
    assert engine.plan(rows(WINDOW - 4)).has_tree


@torch.no_grad()
def test_one_pass_must_leave_the_cache_as_it_was_for_the_next():
    engine = ScoringEngine(tiny("minimax"))
    assert not engine.plan(rows(shared=20)).prefix
    assert engine.caches is False


def test_longer_rows_are_proven_anew_and_shorter_ones_are_not(monkeypatch):
    engine = ScoringEngine(tiny("llama"))
    assert engine.proofs is not None
    tried = []
    verdict = engine.proofs._verdict
    monkeypatch.setattr(engine.proofs, "_verdict", lambda trial: tried.append(trial.size.depth) or verdict(trial))
    for length in (20, 12, 20, 40, 30, 41):
        engine.plan(rows(length, seed=length))
    assert tried == [22, 42, 43]


def test_a_kind_that_failed_is_tried_on_shorter_rows_alone_and_told_once(caplog):
    engine = ScoringEngine(tiny("gpt_neo"))
    assert engine.proofs is not None
    for length in (60, 70, 50, 10, 60, 12):
        engine.plan(rows(length, seed=length))
    assert [size.depth for size in engine.proofs.disproven[TREE]] == [62, 52]
    assert [size.depth for size in engine.proofs.proven[TREE]] == [12, 14]
    assert caplog.text.count("with tree masks on rows of 62 tokens: rows are fed one by one") == 1
    assert caplog.text.count("one by one") == 1


def test_rows_that_must_not_be_padded_are_alone(caplog):
    """Beyond its original length the model takes other positions, for all rows of a batch."""
    engine = ScoringEngine(tiny("phi3_longrope"))
    plan = engine.plan([*rows(2 * WINDOW + 8), *rows(9, seed=1)])
    assert all(len(one.input_ids) == 1 for one in plan.forwards)
    assert engine.fits(plan) == 1
    assert "padded batches" in caplog.text
    short = engine.plan(rows(9, seed=1))
    assert len(short.forwards) == 1
    assert engine.fits(short) > 1


def test_alone_even_the_beginning_of_another_row_is():
    one, longer, other = Row((5, 6, 7), 2), Row((5, 6, 7, 8), 2), Row((5, 6, 9), 2)
    plan = plan_alone([longer, one, other])
    assert sorted(one.input_ids.tolist() for one in plan.forwards) == [[[5, 6]], [[5, 6, 7]]]
    assert sorted(o for one in plan.forwards for o in one.output.tolist()) == [0, 1, 2, 3]
    assert len(make_plan([longer, one, other], token_budget=64).forwards) == 1


def test_numbers_that_are_none_prove_nothing(caplog):
    model = tiny("llama")
    engine = ScoringEngine(model)
    assert engine.proofs is not None
    with torch.no_grad():
        model.lm_head.weight[3, 3] = torch.nan
        assert not engine.plan(rows()).has_tree
        assert not any(engine.proofs.proven.values())
        assert not engine.proofs.disproven
        model.lm_head.weight[3, 3] = 0
        assert engine.plan(rows()).has_tree
    assert not caplog.text


@pytest.mark.parametrize(("family", "taken"), [("llama", True), ("falcon_h1", False)])
@torch.no_grad()
def test_without_float32_the_difference_itself_is_looked_at(family, taken):
    """As where processes share the weights."""
    engine = ScoringEngine(tiny(family, dtype=torch.bfloat16))
    engine.proofs = Proofs(engine._measure, name=family, dtype=torch.bfloat16, widens=lambda: False)
    assert engine.plan(rows()).has_tree == taken


@pytest.mark.parametrize("family", ["llama", "opt", "falcon_h1", "minimax"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_widened_weights_compute_in_float32(family, dtype):
    model, ids = tiny(family, dtype=dtype), torch.tensor([list(range(5, 60))])
    with InFloat32():
        widened = model(input_ids=ids, use_cache=False).logits
    exact = model.float()(input_ids=ids, use_cache=False).logits
    assert widened.dtype == torch.float32
    assert torch.allclose(widened, exact, atol=1e-2)  # what depends on weights alone is rounded


def test_what_is_written_stays_where_it_is():
    kept, wide = torch.zeros(4, dtype=torch.bfloat16), torch.arange(4.0)
    with InFloat32():
        kept.copy_(wide)
        kept[1:] += wide[1:]
        kept[0] = wide[3]
    assert kept.dtype == torch.bfloat16
    assert kept.tolist() == [3, 2, 4, 6]


@pytest.mark.skipif(TORCH < (2, 9), reason="its switches have other names")
def test_full_precision_leaves_settings_as_they_were():
    places = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    with full_precision():
        assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
    assert [place.fp32_precision for place in places] == before


def test_sizes():
    assert Size(0, 9, 12).covers(Size(0, 9, 9))
    assert not Size(0, 9, 12).covers(Size(1, 9, 9))
    assert Size(0, 9, 12).union(Size(4, 5, 13)) == (4, 9, 13)
    assert [str(kind) for kind in (PLAIN, TREE, CACHE)] == ["padded batches", "tree masks", "a shared KV cache"]


@torch.no_grad()
def test_a_model_that_takes_trees_behind_a_cache_is_given_them():
    chance = random.Random(0)
    shared = tuple(chance.choices(range(3, 97), k=300))
    many = [Row((*shared, *chance.choices(range(3, 97), k=24)), 323) for _ in range(24)]
    engine = ScoringEngine(tiny("llama"))
    assert [one.input_ids.shape for one in engine.plan(many).forwards] == [
        one.input_ids.shape for one in make_plan(many, token_budget=engine.token_budget).forwards
    ]
    assert engine.plan(many).has_tree
