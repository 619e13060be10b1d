"""Tiny random models of each family (a few thousand parameters), made here, for speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf

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


def tiny(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> hf.PreTrainedModel:
    """A random model with logits spread enough that a wrong mask or position shows."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config({**CONFIGS, **PLAIN_CONFIGS}[family]())
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.2)
    return model.to(dtype).eval()
