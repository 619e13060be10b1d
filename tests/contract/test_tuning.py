"""Every tuning method on every model family: what is trained, what a step moves, what is saved."""

import copy
import logging
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from support.families import CONFIGS, VOCABULARY, tiny

from justforward.command_line.arguments import parse
from justforward.compat import TRANSFORMERS
from justforward.models.blocks import find_blocks
from justforward.models.loading import LoadedModel
from justforward.models.tuning import TUNERS, TuningSettings, choose, lora_targets, merge_lora, tune, untie
from justforward.optim import MeZO
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row

METHODS = {
    "full": TuningSettings("full"),
    "head": TuningSettings("head"),
    "lora": TuningSettings("lora", lora_r=2, lora_alpha=4),
    "blocks": TuningSettings("full", blocks="-1:"),
    "lora_of_blocks": TuningSettings("lora", lora_r=2, lora_alpha=4, blocks="1:2"),
    "prefix": TuningSettings("prefix", num_prefix=3),
    "prefix_mlp": TuningSettings("prefix", num_prefix=3, reparametrise=True, prefix_from_activations=False),
}
TARGETS = {"gpt2": {"c_attn"}, "gpt_neox": {"query_key_value"}}
TIED = ["opt", "gpt2", "gemma"]

every_family = pytest.mark.parametrize("family", CONFIGS)
# PEFT 0.21 asks for an attribute that transformers 5.24 has renamed, and passes an argument by its old name.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated"),
]


def tuned(family, settings, dtype=torch.float32):
    model = tiny(family, dtype=dtype)
    torch.manual_seed(1)
    return tune(LoadedModel(model, None, None, 512), settings).model  # type: ignore[arg-type]


def head_and_embedding(model: Any):
    return model.get_output_embeddings().weight, model.get_input_embeddings().weight


def rows():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, VOCABULARY, (4, 11), generator=generator).tolist()
    return [Row(tuple(t), 6) for t in tokens]


@torch.no_grad()
def scores(model):
    return ScoringEngine(model.eval()).score(rows()).token_logprobs


def trained(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def one_step(model):
    optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=1e-2)
    engine = ScoringEngine(model)
    optimizer.step(lambda: -engine.score(rows()).token_logprobs.mean())
    assert optimizer.last is not None
    assert optimizer.last.projected_grad != 0


def reloaded(model, method, family, folder, dtype=torch.float32):
    """What a user gets who loads a saved model with plain transformers or PEFT."""
    model.save_pretrained(folder)
    if method in ("full", "head", "blocks"):
        return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return PeftModel.from_pretrained(tiny(family, dtype=dtype), folder)


def expected(model, method, family):
    """Names of the parameters that the method trains."""
    names = [n for n, _ in model.named_parameters()]
    if method == "full":
        return set(names)
    if method == "head":
        head = model.get_output_embeddings()
        return {n for n, p in model.named_parameters() if any(p is q for q in head.parameters())}
    if method == "blocks":
        return {n for n in names if find_blocks(model).number(n) == 1}
    if method.startswith("lora"):
        targets = TARGETS.get(family, {"q_proj", "v_proj"})
        found = {n for n in names if ".lora_" in n and n.split(".lora_")[0].rsplit(".", 1)[-1] in targets}
        blocks = {0, 1} if method == "lora" else {1}
        assert {find_blocks(model).number(n) for n in found} == blocks
        return found
    return {n for n in names if n.startswith("prompt_encoder.")}


@every_family
@pytest.mark.parametrize("method", METHODS)
def test_a_step_moves_what_is_trained_and_a_saved_model_scores_the_same(family, method, tmp_path):
    model = tuned(family, METHODS[method])
    assert trained(model) == expected(model, method, family) != set()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    start = scores(model)
    one_step(model)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == trained(model)
    after = scores(model)
    assert (after - start).abs().max() > 1e-6
    if TRANSFORMERS < (5, 2) and family == "mixtral" and "lora" in method:
        return  # PEFT reads no LoRA of experts with these versions
    torch.testing.assert_close(scores(reloaded(model, method, family, tmp_path)), after, rtol=0, atol=1e-5)


@every_family
def test_lora_covers_every_layer_and_starts_as_the_base_model(family):
    model = tuned(family, METHODS["lora"])
    assert len(trained(model)) == 2 * 2 * len(TARGETS.get(family, ("q_proj", "v_proj")))
    torch.testing.assert_close(scores(model), scores(tiny(family)), rtol=0, atol=1e-6)


@every_family
def test_a_prefix_from_activations_is_a_prompt_of_its_tokens(family):
    model = tuned(family, METHODS["prefix"])
    torch.manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (1, 3))[0].tolist()
    longer = [Row((*tokens, *row.tokens), row.start + 3) for row in rows()]
    with torch.no_grad():
        plain = ScoringEngine(tiny(family)).score(longer).token_logprobs
    torch.testing.assert_close(scores(model), plain, rtol=0, atol=1e-5)


@every_family
@pytest.mark.parametrize("method", ["prefix", "prefix_mlp"])
def test_a_prefix_scores_as_in_pefts_own_forward(family, method):
    model = tuned(family, METHODS[method])
    ids = torch.tensor([row.tokens for row in rows()])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    spans = logits.log_softmax(-1)[:, 5:-1].gather(-1, ids[:, 6:, None])
    torch.testing.assert_close(scores(model), spans.flatten(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["lora", "prefix", "prefix_mlp"])
@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_adapters_are_float32_over_16_bit_weights(family, method, dtype, tmp_path):
    model = tuned(family, METHODS[method], dtype)
    dtypes = {p.requires_grad: p.dtype for p in model.parameters()}
    assert dtypes == {True: torch.float32, False: dtype}
    one_step(model)
    assert torch.equal(scores(model), scores(reloaded(model, method, family, tmp_path, dtype)))


@every_family
def test_backpropagation_reaches_what_is_trained(family):
    for method, settings in METHODS.items():
        model = tuned(family, settings)
        (-ScoringEngine(model).score(rows()).token_logprobs.mean()).backward()
        reached = {n for n, p in model.named_parameters() if p.grad is not None}
        assert reached == trained(model), method


@pytest.mark.parametrize("family", TIED)
def test_untie_makes_a_true_copy(family, tmp_path):
    model = tiny(family)
    start = scores(model)
    assert untie(model)
    assert not untie(model)
    head, embedding = head_and_embedding(model)
    assert torch.equal(head, embedding)
    assert head.data_ptr() != embedding.data_ptr()
    assert torch.equal(scores(model), start)
    model.save_pretrained(tmp_path / "equal")
    assert not untie(hf.AutoModelForCausalLM.from_pretrained(tmp_path / "equal"))
    with torch.no_grad():
        head.add_(1.0)
    model.tie_weights(recompute_mapping=False)
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not again.config.tie_word_embeddings
    assert torch.equal(head_and_embedding(again)[0], head)
    assert torch.equal(head_and_embedding(again)[1], embedding)
    assert not torch.equal(head, embedding)


def test_a_head_of_its_own_needs_no_untying(caplog):
    assert not untie(tiny("llama"))
    with caplog.at_level(logging.INFO, logger="justforward"):
        tuned("llama", TuningSettings("head", untie=True))
        tuned("opt", TuningSettings("head"))
    assert "the head already has weights of its own" in caplog.text
    assert caplog.text.count("it gets a copy, so that only the head is trained") == 1


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_merged_lora_is_a_plain_model(family, tmp_path):
    model = tuned(family, METHODS["lora"])
    one_step(model)
    after = scores(model)
    merged = merge_lora(model)
    assert not isinstance(merged, PeftModel)
    torch.testing.assert_close(scores(merged), after, rtol=0, atol=1e-5)
    # Whoever still holds the wrapper evaluates the merged weights.
    torch.testing.assert_close(scores(model), after, rtol=0, atol=1e-5)
    merged.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(scores(again), scores(merged))
    with pytest.raises(ValueError, match="only LoRA can be merged"):
        merge_lora(tuned(family, METHODS["prefix"]))


def test_the_log_says_what_is_trained(caplog):
    with caplog.at_level(logging.INFO, logger="justforward"):
        tuned("opt", METHODS["prefix"])
        tuned("gpt2", METHODS["lora"])
    assert "prefix tuning, trainable parameters: 384 (1.035 %)" in caplog.text
    assert "no separate query and value projections: LoRA goes on c_attn" in caplog.text


def test_a_prefix_takes_its_positions_from_the_rows():
    model = tiny("opt")
    settings = TuningSettings("prefix", num_prefix=3)
    assert tune(LoadedModel(copy.deepcopy(model), None, None, 512), settings).max_length == 509  # type: ignore[arg-type]
    assert tune(LoadedModel(model, None, None, 100), settings).max_length == 100  # type: ignore[arg-type]


def test_models_and_settings_that_do_not_fit():
    mamba = hf.MambaForCausalLM(hf.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=2, state_size=4))
    loaded = LoadedModel(mamba.eval(), None, None, 512)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no modules named q_proj/v_proj, .*qkv_proj"):
        tune(loaded, TuningSettings("lora"))
    with pytest.raises(ValueError, match=r"keys and values of one shape in all layers.*use LoRA"):
        tune(loaded, TuningSettings("prefix"))
    with pytest.raises(ValueError, match="cannot start from activations"):
        tuned("opt", TuningSettings("prefix", reparametrise=True))
    with pytest.raises(ValueError, match=r"unknown tuning method 'lorra' \(did you mean 'lora'\?\)"):
        tuned("opt", TuningSettings("lorra"))


def test_a_fused_projection_that_peft_does_not_know():
    config = hf.Phi3Config(
        vocab_size=97,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    assert lora_targets(hf.AutoModelForCausalLM.from_config(config)) == ("qkv_proj",)


def test_a_tuner_is_added_in_one_place(monkeypatch):
    monkeypatch.setattr(TUNERS, "_loaders", dict(TUNERS._loaders))

    @TUNERS.register("norms")
    def tune_norms(loaded, settings):
        for name, p in loaded.model.named_parameters():
            p.requires_grad_("norm" in name)
        return loaded

    assert {n.split(".")[-2] for n in trained(tuned("llama", TuningSettings("norms")))} == {
        *["input_layernorm", "post_attention_layernorm", "norm"]
    }


def test_flags_name_methods():
    assert choose() == "full"
    assert choose(lora=True) == "lora"
    assert choose(prefix=True) == "prefix"
    assert choose(head=True) == "head"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--load_int8"], "--load_int8 weights cannot be trained themselves"),
        (["--load_int8", "--head_tuning"], "--load_int8 weights cannot be trained themselves"),
        (["--load_int8", "--lora", "--untie_emb"], "--untie_emb makes a head to be trained"),
        (["--lora", "--merge_lora"], "use it with --lora and --save_model"),
        (["--save_model", "--merge_lora"], "use it with --lora and --save_model"),
        (["--load_int8", "--lora", "--save_model", "--merge_lora"], "would round LoRA's updates"),
    ],
)
def test_arguments_that_do_not_fit(words, message):
    train = ["--trainer", "zo", "--num_train", "8", "--train_set_seed", "0", "--output_dir", "out"]
    with pytest.raises(ValueError, match=message):
        parse([*train, *words])
