"""Generation on every family, prefix-tuned or not: batched, left-padded and cached equals token by token."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PrefixTuningConfig, get_peft_model
from support.families import CONFIGS, PLAIN_CONFIGS, VOCABULARY, tiny
from support.older import NOT_YET

from justforward.scoring.continuing import Way
from justforward.scoring.generation import GenerationSettings, Generator

pytestmark = [
    # Raised inside PEFT 0.21.2 under transformers 5.24, which renamed what PEFT reads and passes.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated"),
]
FAMILIES = [*CONFIGS, *PLAIN_CONFIGS]
PROMPTS = [(5, 6, 7, 8, 9), (10, 11), (12, 13, 14)]
STOP, EOS, NEW = 96, 2, 6


class Numbers:
    """A tokenizer whose texts are the token ids."""

    pad_token_id, eos_token_id = 0, EOS

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [STOP] if text == "\n" else []

    def batch_decode(self, rows: torch.Tensor, skip_special_tokens: bool = True) -> list[str]:
        # A finished beam may end in its stop token, a newline in real life, which is stripped.
        ends = [row.index(STOP) if STOP in row else len(row) for row in rows.tolist()]
        cut = [row[:end] for row, end in zip(rows.tolist(), ends, strict=True)]
        return [" ".join(str(t) for t in row if t not in (0, EOS)) for row in cut]


def model_of(family: str, prefix: bool) -> Any:
    model = tiny(family)
    if not prefix:
        return model
    tuned = get_peft_model(model, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    torch.manual_seed(1)
    torch.nn.init.normal_(tuned.get_parameter("prompt_encoder.default.embedding.weight"))
    return tuned


@torch.no_grad()
def greedy(model: Any, prompt: Sequence[int]) -> str:
    """The reference: one token at a time, everything computed anew, PEFT's own forward."""
    ids = list(prompt)
    for _ in range(NEW):
        row = torch.tensor([ids])
        ids.append(int(model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, -1].argmax()))
        if ids[-1] in (STOP, EOS):
            break
    return " ".join(str(t) for t in ids[len(prompt) :] if t not in (0, EOS, STOP))


@pytest.mark.parametrize("prefix", [False, True], ids=["plain", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy(family, prefix):
    model = model_of(family, prefix)
    texts = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW)).generate(PROMPTS)
    assert texts == [greedy(model, p) for p in PROMPTS]


@pytest.mark.parametrize("prefix", [False, True], ids=["plain", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_beams_do_not_depend_on_the_batch(family, prefix):
    model = model_of(family, prefix)
    generator = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW, num_beams=3))
    assert generator.generate(PROMPTS) == [generator.generate([p])[0] for p in PROMPTS]


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_sampling_repeats_with_its_seed(family):
    model = model_of(family, prefix=True)
    generator = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW, sampling=True, top_p=0.9, top_k=20))
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        texts.append(generator.generate(PROMPTS))
    assert texts[0] == texts[1] != texts[2]


def test_a_budget_splits_batches_and_changes_nothing():
    model = model_of("llama", prefix=False)
    told: list[int] = []
    whole = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW)).generate(PROMPTS)
    small = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW), token_budget=12)
    assert small.generate(PROMPTS, told.append) == whole
    assert told == [1, 1, 1]


def test_an_unknown_stop_token_is_refused():
    with pytest.raises(ValueError, match="is no token of this model"):
        Generator(tiny("opt"), Numbers(), GenerationSettings(eos_token=""))


_sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_small: dict[str, Any] = {**_sizes, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
STUBBORN = {
    "rwkv": (hf.RwkvConfig(**_small, attention_hidden_size=32, context_length=128), "one by one with a growing cache"),
    "recurrent_gemma": (
        hf.RecurrentGemmaConfig(**_small, num_attention_heads=4, lru_width=32, attention_window_size=16),
        "in batches of equal length with a growing cache",
    ),
    "minimax": (
        hf.MiniMaxConfig(
            **_small,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=2,
            layer_types=["linear_attention", "full_attention", "linear_attention"],
            block_size=16,
        ),
        "in batches of equal length with a growing cache",
    ),
    "falcon": (
        hf.FalconConfig(**_small, num_attention_heads=4, alibi=True, multi_query=False),
        "in padded batches with a growing cache",
    ),
    "bart": (
        hf.BartConfig(**_sizes, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64),
        "in batches of equal length with a cache of fixed size",
    ),
}
"""Families with a batch or cache that is not what the row is alone, and how their rows are continued."""
LENGTHS = (29, 29, 20, 11, 4)


def stubborn(family: str) -> Any:
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(STUBBORN[family][0])
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    return model.eval()


def unlike(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    chance = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(3, 95, (n,), generator=chance).tolist()) for n in lengths]


@pytest.mark.parametrize("family", [family for family in STUBBORN if family not in NOT_YET])
def test_what_a_model_does_not_take_is_left_alone(family, caplog):
    model, prompts = stubborn(family), unlike(LENGTHS)
    generator = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW))
    assert generator.generate(prompts) == [greedy(model, p) for p in prompts]
    assert str(generator.continuer.way) == STUBBORN[family][1]
    assert f"prompts are continued {STUBBORN[family][1]}" in caplog.text


@pytest.mark.parametrize("family", ["rwkv", "recurrent_gemma"])
def test_beams_whose_cache_does_not_follow_get_none(family):
    model, prompts = stubborn(family), unlike(LENGTHS)
    generator = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW, num_beams=3))
    texts = generator.generate(prompts)
    assert generator.continuer.way.cache == "none"
    generator.continuer.ways = [Way("one", "none")]
    assert texts == generator.generate(prompts)


def test_what_is_proven_on_short_rows_is_proven_again_on_long_ones():
    model = stubborn("recurrent_gemma")
    generator = Generator(model, Numbers(), GenerationSettings(max_new_tokens=2))
    generator.generate(unlike([4]))
    assert generator.continuer.way.rows == "any"  # alone, a row is not padded
    generator.generate(unlike([4, 3]))
    generator.generate(unlike([30, 24, 3]))
    assert generator.continuer.way.rows == "equal"


def test_what_is_proven_is_not_proven_again(monkeypatch):
    generator = Generator(tiny("llama"), Numbers(), GenerationSettings(max_new_tokens=NEW))
    rounds: list[int] = []
    settle = generator.continuer.settle
    monkeypatch.setattr(generator.continuer, "settle", lambda batches: rounds.append(1) or settle(batches))
    for lengths in ([9, 4], [9, 4], [5, 4], [10, 9, 9], [10, 2]):
        generator.generate(unlike(lengths))
    assert len(rounds) == 3  # the first, the longer, the more padded


def test_a_proof_that_runs_out_of_memory_is_made_on_less(monkeypatch):
    model, prompts = tiny("llama"), unlike([6, 6, 6, 6])
    generator = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW), token_budget=4 * (6 + NEW))
    generate = generator.continuer.base.generate
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory")

    def limited(*, input_ids, **arguments):
        if len(input_ids) > 2:
            raise full
        return generate(input_ids=input_ids, **arguments)

    monkeypatch.setattr(generator.continuer.base, "generate", limited)
    assert generator.generate(prompts) == [greedy(model, p) for p in prompts]
    assert generator.continuer.way == Way("any", "fixed")
    assert generator.token_budget == 2 * (6 + NEW)


def test_logits_that_are_not_numbers_prove_nothing_and_end():
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter("lm_head.weight")[7] = float("nan")
    generator = Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW))
    assert len(generator.generate(PROMPTS)) == len(PROMPTS)


def test_the_models_own_settings_come_back():
    model = tiny("llama")
    own = model.generation_config
    own.repetition_penalty = 5.0
    Generator(model, Numbers(), GenerationSettings(max_new_tokens=NEW)).generate(PROMPTS)
    assert model.generation_config is own
