"""Tiny random models of each family (a few thousand parameters), made here, for speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

from support.older import NOT_YET

VOCABULARY = 97

_common: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_llama: dict[str, Any] = {
    **_common,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_plain: dict[str, Any] = {k: v for k, v in _llama.items() if k != "num_key_value_heads"}
_one_key_head: dict[str, Any] = {**_llama, "num_key_value_heads": 1, "head_dim": 8}

CONFIGS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "opt": lambda: hf.OPTConfig(
        **_common,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=64,
        word_embed_proj_dim=32,
        max_position_embeddings=512,
    ),
    "llama": lambda: hf.LlamaConfig(**_llama),
    "gpt2": lambda: hf.GPT2Config(**_common, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_plain),
    "qwen2": lambda: hf.Qwen2Config(**_llama),
    "gemma": lambda: hf.GemmaConfig(**_one_key_head),
    "mistral": lambda: hf.MistralConfig(**_llama, sliding_window=64),
    "phi": lambda: hf.PhiConfig(**_plain),
    "mixtral": lambda: hf.MixtralConfig(**_llama, num_local_experts=4),
}
"""Families that the scoring engine packs into trees and caches."""

PLAIN_CONFIGS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "bloom": lambda: hf.BloomConfig(**_common, hidden_size=32, n_layer=2, n_head=4),
}
"""Families whose positions cannot be given (ALiBi): their rows are fed one by one."""

WINDOW = 32

_window: dict[str, Any] = {**_llama, "sliding_window": WINDOW}
_mamba: dict[str, Any] = {
    f"mamba_{k}": v for k, v in {"d_state": 16, "d_head": 16, "n_heads": 4, "n_groups": 1}.items()
}
_layers: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_rope: dict[str, Any] = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 2 * WINDOW}

HARD_CONFIGS: dict[str, Callable[[], hf.PretrainedConfig]] = {
    "bamba": lambda: hf.BambaConfig(**_llama, **_mamba, attn_layer_indices=[1]),
    "falcon_alibi": lambda: hf.FalconConfig(**_plain, alibi=True),
    "falcon_h1": lambda: hf.FalconH1Config(**_llama, **_mamba, mamba_d_ssm=64, mamba_chunk_size=16),
    "gemma2": lambda: hf.Gemma2Config(**_window, head_dim=8),
    "gemma3": lambda: hf.Gemma3TextConfig(**_window, head_dim=8, layer_types=["sliding_attention", "full_attention"]),
    "gpt_neo": lambda: hf.GPTNeoConfig(
        **_common,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=512,
    ),
    "granite_hybrid": lambda: hf.GraniteMoeHybridConfig(
        **_llama, **_mamba, **_layers, num_local_experts=2, shared_intermediate_size=32
    ),
    "jamba": lambda: hf.JambaConfig(**_llama, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_dt_rank=8),
    "lfm2": lambda: hf.Lfm2Config(**_llama, layer_types=["conv", "full_attention"]),
    "llama4": lambda: hf.Llama4TextConfig(
        **_llama, head_dim=8, intermediate_size_mlp=32, num_local_experts=2, attention_chunk_size=WINDOW
    ),
    "mamba": lambda: hf.MambaConfig(**_common, hidden_size=32, num_hidden_layers=2, state_size=8),
    "minimax": lambda: hf.MiniMaxConfig(**_llama, **_layers, head_dim=8, num_local_experts=2, block_size=16),
    "mistral_long": lambda: hf.MistralConfig(**_window),
    "phi3_longrope": lambda: hf.Phi3Config(
        **_llama,
        original_max_position_embeddings=2 * WINDOW,
        rope_parameters={**_rope, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4},
    ),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        **_llama,
        **_layers,
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(
        **{**_llama, "num_hidden_layers": 3, "head_dim": 8}, lru_width=32, attention_window_size=WINDOW
    ),
    "rwkv": lambda: hf.RwkvConfig(**_common, hidden_size=32, num_hidden_layers=2, context_length=512),
    "xlstm": lambda: hf.xLSTMConfig(
        **_common, hidden_size=64, num_hidden_layers=2, num_heads=2, qk_dim_factor=1.0, chunk_size=16
    ),
    "zamba2": lambda: hf.Zamba2Config(
        **{**_plain, "mamba_headdim": 16, "attention_head_dim": 16, "attention_hidden_size": 64},
        layers_block_type=["linear_attention", "hybrid"],
        mamba_d_state=16,
        n_mamba_heads=4,
        adapter_rank=8,
    ),
}
HARD_CONFIGS = {family: make for family, make in HARD_CONFIGS.items() if family not in NOT_YET}
"""Families that take some short cuts only, or up to a length: windows, chunks, states that run through a row."""


def tiny(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    """A random model with logits spread enough that a wrong mask or position shows."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config({**CONFIGS, **PLAIN_CONFIGS, **HARD_CONFIGS}[family]())
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    return model.to(dtype).eval()
