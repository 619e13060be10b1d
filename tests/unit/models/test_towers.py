"""What text does not reach, and that it is not trained."""

from typing import Any

import pytest
import torch
import transformers as hf
from support.families import CONFIGS, PLAIN_CONFIGS, tiny

from justforward.models.loading import LoadedModel
from justforward.models.towers import unseen_towers
from justforward.models.tuning import TuningSettings, tune
from justforward.planning.shape import shape_of

TEXT: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 8, "patch_size": 4}


def git() -> hf.PreTrainedModel:
    """Its text says query and value, its vision tower q_proj and v_proj."""
    return hf.GitForCausalLM(hf.GitConfig(vision_config=VISION, **TEXT, **IDS))


def gemma3() -> hf.PreTrainedModel:
    """Both say q_proj and v_proj."""
    text = {**TEXT, **IDS, "num_key_value_heads": 1, "head_dim": 16}
    vision = {**VISION, "vision_use_head": False}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=1, image_token_index=90)
    return hf.Gemma3ForConditionalGeneration(config)


def bart() -> hf.PreTrainedModel:
    """A decoder alone, which keeps its attention to an encoder."""
    sizes: dict[str, Any] = {
        "vocab_size": 97,
        "d_model": 32,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
    }
    return hf.BartForCausalLM(hf.BartConfig(**sizes, **IDS))


def prophetnet() -> hf.PreTrainedModel:
    """Its embedding of n-grams is read, and never called."""
    sizes: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "decoder_ffn_dim": 32, "num_decoder_layers": 1}
    return hf.ProphetNetForCausalLM(hf.ProphetNetConfig(**sizes, num_decoder_attention_heads=2, **IDS))


UNSEEN = {
    git: ["git.image_encoder", "git.visual_projection"],
    gemma3: ["model.vision_tower", "model.multi_modal_projector"],
    bart: [f"model.decoder.layers.{i}.{part}" for i in (0, 1) for part in ("encoder_attn", "encoder_attn_layer_norm")],
    prophetnet: [f"prophetnet.decoder.layers.0.{part}" for part in ("cross_attn", "cross_attn_layer_norm")],
}


def trained(model, method):
    tuned = tune(LoadedModel(model.eval(), None, None, 64), TuningSettings(method))  # type: ignore[arg-type]
    return tuned.model, {name for name, p in tuned.model.named_parameters() if p.requires_grad}


def moved(model):
    """Names of the trained weights that the logits of a text depend on, by backpropagation."""
    model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits.square().sum().backward()
    return {name for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}


@pytest.mark.parametrize("make", UNSEEN, ids=lambda make: make.__name__)
def test_what_text_does_not_reach(make):
    torch.manual_seed(0)
    assert unseen_towers(make().eval()) == UNSEEN[make]


WAYS = [*((make, "full") for make in UNSEEN), (git, "lora"), (gemma3, "lora"), (bart, "lora")]


@pytest.mark.parametrize(("make", "method"), WAYS)
def test_what_is_trained_is_what_the_loss_sees(make, method):
    torch.manual_seed(0)
    model, names = trained(make(), method)
    assert names
    assert names == moved(model)


@pytest.mark.parametrize("make", [git, gemma3])
def test_a_plan_counts_the_same_projections(make):
    torch.manual_seed(0)
    model, names = trained(make(), "lora")
    assert shape_of(make().eval()).lora_widths == sum(p.numel() for n, p in model.named_parameters() if n in names) // 8


@pytest.mark.parametrize("family", [*CONFIGS, *PLAIN_CONFIGS])
def test_of_text_alone_everything_is_trained(family):
    model, names = trained(tiny(family), "full")
    assert names == {name for name, _ in model.named_parameters()}
    assert unseen_towers(model) == []
