"""Which short cuts each family of causal models takes, and how far its scores are from those of rows alone.

Run: python -m bench.families [FAMILY ...]
Builds a tiny random model of every family that transformers maps to a causal model (or of those named), with windows of
32 tokens where its configuration has any, and scores 100 questions of three options in rows of up to 110 tokens, the
second 50 with a beginning that they share. The reference feeds every row alone to the same weights in the same dtype,
and takes all logits. The table has for each dtype the largest difference of a token's log-probability, and how many
answers change; for bfloat16 also how far the reference itself is from float32; and in the end what would come out if
every short cut were taken unproven. Takes an hour on one core.
"""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.scoring.proof import Kind

VOCABULARY, WINDOW, LENGTH, LARGEST = 97, 32, 512, 50e6
QUESTIONS, OPTIONS, SHARED = 50, 3, 40

SMALL: list[tuple[int, list[str]]] = [
    (VOCABULARY, ["vocab_size", "vocab_size_per_layer_input"]),
    (WINDOW, ["sliding_window", "window_size", "attention_window_size", "attention_chunk_size", "local_attention"]),
    (LENGTH, ["max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"]),
    (32, ["hidden_size", "d_model", "n_embd", "embedding_size", "embedding_dim", "word_embed_proj_dim", "lru_width"]),
    (64, ["intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim"]),
    (32, ["moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "ffn_hidden_size"]),
    (
        32,
        [
            "expert_ffn_hidden_size",
            "router_hidden_size",
            "intermediate_size_mlp",
            "moe_shared_expert_intermediate_size",
        ],
    ),
    (4, ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks"]),
    (4, ["num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "num_heads", "linear_num_heads"]),
    (4, ["n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "linear_num_value_heads"]),
    (2, ["num_key_value_heads", "linear_num_key_heads", "num_experts_per_tok", "num_experts_per_token", "moe_k"]),
    (8, ["head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim", "linear_head_dim"]),
    (8, ["linear_key_head_dim", "linear_value_head_dim", "hidden_size_per_layer_input", "adapter_rank"]),
    (16, ["q_lora_rank", "kv_lora_rank", "attention_head_dim", "mamba_headdim", "mamba_d_head", "mamba_d_state"]),
    (8, ["index_head_dim", "mamba_dt_rank", "chunk_size", "mamba_chunk_size", "ffn_round_up_to_multiple_of"]),
    (4, ["mamba_n_heads", "index_n_heads", "n_mamba_heads", "mamba_num_heads"]),
    (1, ["n_group", "topk_group", "num_expert_group", "mamba_n_groups", "bos_token_id"]),
    (2, ["eos_token_id", "mamba_expand"]),
    (0, ["pad_token_id"]),
]
"""By value, the names that configurations have for it; a configuration gets those that it knows."""

KINDS = {"b": Kind(False, False), "t": Kind(True, False), "c": Kind(False, True), "tc": Kind(True, True)}
"""In the table: padded batches, trees, caches, trees behind a cache; with the longest row that they are proven for."""

MIXED = {"layer_types": ["linear_attention", "full_attention"] * 2}
HYBRID = {"layers_block_type": ["linear_attention", "hybrid"] * 2}
LATENT = {"num_key_value_heads": 4, "head_dim": 8, "qk_head_dim": 16}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
FURTHER: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {**MIXED, **LATENT, "layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"n_inner": None},
    "falcon": {"alibi": False},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {"per_layer_config": {}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": MIXED,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**MIXED, **LATENT},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 16},
    "nemotron_h": {"n_groups": 1, "mamba_head_dim": 16, "ssm_state_size": 16},
    "plbart": {"encoder_attention_heads": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "whisper": {"encoder_attention_heads": 4, "d_model": 32},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "num_heads": 2, "qk_dim_factor": 1.0, "chunk_size": 16},
    "zamba": {**HYBRID, "n_mamba_heads": 2, "attention_hidden_size": 64},
    "zamba2": {**HYBRID, "attention_hidden_size": 64, "kv_channels": 8, "num_query_groups": 4},
    "zaya": {"num_experts_per_tok": 1},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "llama, dynamic": (
        "llama",
        {"max_position_embeddings": 64, "rope_parameters": {**ROPE, "rope_type": "dynamic", "factor": 2.0}},
    ),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                **ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "original_max_position_embeddings": 64,
            },
        },
    ),
}
"""More models of a family: name -> family and what else is set."""


def configuration(family: str, more: dict[str, Any]) -> PretrainedConfig:
    """A small one, of the part that reads text. Raises what the family's class raises."""
    kind = type(CONFIG_MAPPING[family]().get_text_config(decoder=True))
    known = {*kind().to_dict(), *kind.attribute_map}
    sizes: dict[str, Any] = {name: value for value, names in SMALL for name in names if name in known}
    sizes |= {"is_decoder": True} if "is_decoder" in known else {}
    if "kv_lora_rank" in known:
        sizes |= {name: value for name, value in LATENT.items() if name in known}
    own = {**sizes, **FURTHER.get(kind.model_type, FURTHER.get(family, {})), **more}
    first = {"layer_types": None} if "layer_types" in known and not own.keys() & {"layer_types", *HYBRID} else {}
    try:
        return kind(**first, **own)  # None: a pattern for so few layers
    except Exception:
        return kind(**own)


def build(family: str, more: dict[str, Any]) -> PreTrainedModel:
    """Random weights, with logits spread enough that a wrong mask shows."""
    config = configuration(family, more)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"is not made small: {size / 1e6:.0f} M parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.float().eval()


def questions(chance: random.Random, shared: Sequence[int], longest: int) -> list[Row]:
    """Three options each, of 1 to 4 tokens, behind prompts of up to `longest` tokens of their own."""
    rows = []
    for _ in range(QUESTIONS):
        prompt = (*shared, *words(chance, chance.randint(4, longest)))
        rows += [Row(prompt + words(chance, chance.randint(1, 4)), len(prompt)) for _ in range(OPTIONS)]
    return rows


def words(chance: random.Random, count: int) -> tuple[int, ...]:
    """Tokens that are no special ones."""
    return tuple(chance.choices(range(3, VOCABULARY), k=count))


@torch.no_grad()
def alone(model: PreTrainedModel, rows: Sequence[Row]) -> list[Tensor]:
    """The reference."""
    scores = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.tokens[:-1]])).logits
        logprobs = torch.log_softmax(logits[0].float(), dim=-1)
        scores.append(logprobs[torch.arange(row.start - 1, len(row.tokens) - 1), torch.tensor(row.tokens[row.start :])])
    return scores


@torch.no_grad()
def by_engine(engine: ScoringEngine, sets: Sequence[Sequence[Row]]) -> list[Tensor]:
    """A plan for each set."""
    return [Tensor(row) for rows in sets for row in engine.score(rows).by_row()]


def apart(a: Sequence[Tensor], b: Sequence[Tensor]) -> str:
    """Largest difference, and how many answers change."""
    largest = max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))
    return f"{largest:8.1g} {sum(x != y for x, y in zip(answers(a), answers(b), strict=True)):4d}"


def answers(scores: Sequence[Tensor]) -> list[int]:
    """The option with the highest mean, by question."""
    means = torch.stack([score.mean() for score in scores]).view(-1, OPTIONS)
    return means.argmax(1).tolist()


def row_of(model: PreTrainedModel) -> str:
    """One line of the table."""
    chance = random.Random(0)
    sets = [questions(chance, (), 100), questions(chance, words(chance, SHARED), 60)]
    rows = [row for one in sets for row in one]
    exact = alone(model, rows)
    trusting = ScoringEngine(model)
    trusting.proofs = None
    try:
        trusted = apart(by_engine(trusting, sets), exact)
    except Exception as error:
        trusted = f"  {type(error).__name__}"
    cells = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.nn.Module.to(model, dtype)
        reference = exact if dtype == torch.float32 else alone(model, rows)
        engine = ScoringEngine(model)
        scores = by_engine(engine, sets)
        assert engine.proofs is not None
        taken = " ".join(
            f"{letter}{max((size.depth for size in engine.proofs.proven.get(kind, ())), default='-')}"
            for letter, kind in (
                ("b", Kind(False, False)),
                ("t", Kind(True, False)),
                ("c", Kind(False, True)),
                ("ct", Kind(True, True)),
            )
        )
        cells += [f"{taken:20s}", apart(scores, reference)]
    return " | ".join([*cells, apart(reference, exact), trusted])


def main() -> None:
    """See the module."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    known = {name: (name, {}) for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} | VARIANTS
    print(f"{'family':24s} | float32: proven up to | difference, answers | bfloat16 | difference | rounding | unproven")
    seen = set()
    for name in sys.argv[1:] or known:
        family, more = known[name]
        try:
            model = build(family, more)
            if not more and type(model) in seen:
                continue
            seen.add(type(model))
            line = row_of(model)
        except Exception as error:
            line = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        print(f"{name:24s} | {line}", flush=True)


if __name__ == "__main__":
    main()
