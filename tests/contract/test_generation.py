"""Generation on every family, prefix-tuned or not: batched, left-padded and cached equals token by token."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from support.families import CONFIGS, PLAIN_CONFIGS, tiny

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
