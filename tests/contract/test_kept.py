"""Frozen lower blocks that are computed once: passes that start behind them, over every family."""

import random

import pytest
import torch
import transformers as hf

from justforward.compat import checkpoint_activations
from justforward.models.blocks import chosen, find_blocks
from justforward.optim import MeZO
from justforward.scoring import ScoringEngine
from justforward.scoring.kept import UpperBlocks, keep
from justforward.scoring.prompts import Row
from tests.support.families import CONFIGS, HARD_CONFIGS, PLAIN_CONFIGS, VOCABULARY

FAMILIES = {**CONFIGS, **PLAIN_CONFIGS, **HARD_CONFIGS}


def made(family, dtype=torch.float32):
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(FAMILIES[family]()).to(dtype).eval()


def some_rows(count=6):
    """Rows of random lengths; pairs of them share a prompt, as options do."""
    chance = random.Random(0)
    prompts = [[1] + [chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(4, 28))] for _ in range(count)]
    options = [[chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(1, 4))] for _ in range(2)]
    return [Row((*prompt, *option), len(prompt)) for prompt in prompts for option in options]


def up_projection(model, block):
    return model.get_parameter(f"model.layers.{block}.mlp.up_proj.weight")


@torch.no_grad()
def score(model, rows, kept=None):
    engine = ScoringEngine(model)
    engine.kept = kept
    return engine.score(rows).token_logprobs


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_that_start_behind_frozen_blocks_score_what_whole_ones_do(family, tmp_path):
    model, rows = made(family), some_rows()
    kept = keep(UpperBlocks(model, 1), rows, tmp_path)
    assert kept is not None
    assert kept.hold(rows)
    below = find_blocks(model).modules[0]
    found = score(model, rows, kept)
    torch.testing.assert_close(found, score(model, rows), rtol=0, atol=2e-5)
    assert "forward" not in vars(below), "the block is itself again"


def test_the_frozen_blocks_are_not_run(tmp_path):
    model, rows = made("llama"), some_rows()
    engine = ScoringEngine(model)
    engine.kept = keep(UpperBlocks(model, 1), rows, tmp_path)
    below = find_blocks(model).modules[0]
    called = set()
    with torch.no_grad():
        plan = engine.plan(rows)  # which proves on whole passes that the model takes trees
        for part in below.modules():
            part.register_forward_hook(lambda module, *_: called.add(module))
        engine.run(plan)
    assert called == {below}, "the block itself passes on; nothing in it is called"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computed_anew_the_states_are_the_same_to_the_bit(dtype, tmp_path):
    model, rows = made("llama", dtype), some_rows()
    first = score(model, rows, keep(UpperBlocks(model, 1), rows, tmp_path / "a"))
    (file,) = (tmp_path / "a").iterdir()
    written = file.stat().st_mtime_ns
    again = score(model, rows[::-1], keep(UpperBlocks(model, 1), rows[::-1], tmp_path / "a"))
    assert file.stat().st_mtime_ns == written, "the order of rows does not matter, and the file is read"
    assert torch.equal(first.sort().values, again.sort().values)
    anew = score(model, rows, keep(UpperBlocks(model, 1), rows, tmp_path / "b"))
    assert torch.equal(first, anew)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied"])
def test_a_file_that_is_not_what_was_written_is_made_anew(damage, tmp_path, caplog):
    model, rows = made("llama"), some_rows()
    first = score(model, rows, keep(UpperBlocks(model, 1), rows, tmp_path))
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes({"cut": data[:-40], "flipped": data, "emptied": b""}[damage])
    again = score(model, rows, keep(UpperBlocks(model, 1), rows, tmp_path))
    assert torch.equal(first, again)
    assert "is not what was written" in caplog.text


def test_rows_of_an_evaluation_change_no_bit_of_the_trainings(tmp_path):
    model, rows = made("llama"), some_rows()
    alone = score(model, rows[:4], keep(UpperBlocks(model, 1), rows[:4], tmp_path))
    beside = keep(UpperBlocks(model, 1), rows[:4], tmp_path, more=rows)
    assert beside is not None
    assert beside.hold(rows)
    assert torch.equal(score(model, rows[:4], beside), alone)


def test_one_row_gives_the_same_bits_as_a_whole_pass(tmp_path):
    model, rows = made("qwen2"), some_rows(1)[:1]
    assert torch.equal(score(model, rows), score(model, rows, keep(UpperBlocks(model, 1), rows, tmp_path)))


def test_rows_that_are_not_known_are_computed_whole(tmp_path):
    model, rows = made("llama"), some_rows()
    kept = keep(UpperBlocks(model, 1), rows[:6], tmp_path)
    assert kept is not None
    assert not kept.hold(rows)
    assert torch.equal(score(model, rows, kept), score(model, rows))


@pytest.mark.parametrize("change", ["weights", "rows", "block", "dtype"])
def test_other_weights_rows_blocks_or_dtypes_have_a_file_of_their_own(change, tmp_path):
    model, rows = made("llama"), some_rows()
    keep(UpperBlocks(model, 1), rows, tmp_path)
    if change == "weights":
        up_projection(model, 0).data[0, 0] += 1
    elif change == "dtype":
        model = model.bfloat16()
    keep(UpperBlocks(model, 2 if change == "block" else 1), rows[1:] if change == "rows" else rows, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_above_do_not_matter_to_the_file(tmp_path):
    model, rows = made("llama"), some_rows()
    keep(UpperBlocks(model, 1), rows, tmp_path)
    up_projection(model, 1).data += 1
    keep(UpperBlocks(model, 1), rows, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_model_that_cannot_start_there_is_run_whole(tmp_path, caplog):
    model, rows = made("llama"), some_rows()
    embedding = model.get_input_embeddings()
    last = find_blocks(model).modules[1]
    seen = []
    embedding.register_forward_hook(lambda module, given, output: seen.append(output))
    model.get_submodule("model.layers.0.mlp").register_forward_hook(lambda *_: seen.append(torch.ones(1)))
    last.register_forward_hook(lambda *called: called[-1] + len(seen))
    with caplog.at_level("WARNING"):
        assert keep(UpperBlocks(model, 1), rows, tmp_path) is None
    assert "passes cannot start at block 1, and are made whole: logits differ by" in caplog.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradients_of_the_blocks_above_are_those_of_a_whole_pass(gradient_checkpointing, tmp_path):
    model, rows = made("llama"), some_rows()
    model.requires_grad_(False)
    find_blocks(model).modules[1].requires_grad_(True)
    kept = keep(UpperBlocks(model, 1), rows, tmp_path)
    if gradient_checkpointing:
        checkpoint_activations(model, True)
        model.train()
    found = []
    for states in (None, kept):
        engine = ScoringEngine(model)
        engine.kept = states
        engine.score(rows).token_logprobs.mean().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert len(found[0]) == len(found[1]) == sum(1 for _ in find_blocks(model).modules[1].parameters())
    for whole, upper in zip(*found, strict=True):
        torch.testing.assert_close(upper, whole, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def losses_of_steps(folder):
    """Three steps of MeZO on the upper block, both probes in one pass; with a folder behind kept states."""
    model, rows = made("llama"), some_rows()
    model.requires_grad_(False)
    find_blocks(model).modules[1].requires_grad_(True)
    engine = ScoringEngine(model)
    engine.kept = None if folder is None else keep(UpperBlocks(model, 1), rows, folder)
    mezo = MeZO(model.named_parameters(), lr=1e-2, eps=1e-2, model=model)
    plan, found = engine.plan(rows), []
    for _ in range(3):
        mezo.estimate(
            lambda: -engine.run(plan).token_logprobs.mean(),
            paired=lambda: torch.stack([-s.token_logprobs.mean() for s in engine.run_copies(plan, 2)]),
        )
        mezo.step()
        assert mezo.last is not None
        found += mezo.last.losses
    return torch.tensor(found)


def test_both_probes_of_a_step_start_behind_them(tmp_path):
    torch.testing.assert_close(losses_of_steps(tmp_path), losses_of_steps(None), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "numbers"),
    [("1:3", range(1, 3)), ("2:", range(2, 4)), (":2", range(2)), ("-1:", range(3, 4)), ("-3:-1", range(1, 3)),
     (":", range(4)), ("3:99", range(3, 4))],
)  # fmt: skip
def test_ranges_of_blocks_are_pythons(words, numbers):
    assert chosen(words, 4) == numbers


@pytest.mark.parametrize("words", ["4:", "2:2", "3:1", ":0", "a:b", "3", "", "1:2:3"])
def test_what_is_no_range_of_the_models_blocks_is_refused(words):
    with pytest.raises(ValueError, match=r"argument --train_blocks: '.*' is no range of the model's 4 blocks"):
        chosen(words, 4)
