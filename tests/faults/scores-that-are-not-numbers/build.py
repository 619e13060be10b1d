from math import inf, nan
from pathlib import Path

from safetensors.torch import load_file, save_file
from support.making import byte_level, fast, one, random_llama


def spoilt(name, weight, place, value):
    """A random model with something else in one place."""
    random_llama(name, fast(byte_level()), max_position_embeddings=512)
    path = Path(name) / "model.safetensors"
    weights = load_file(path)
    weights[weight][place] = value
    save_file(weights, path, metadata={"format": "pt"})


spoilt("nan", "lm_head.weight", (5, 3), nan)
spoilt("inf", "model.layers.1.mlp.up_proj.weight", (0, 0), inf)
spoilt("weight", "model.norm.weight", ..., 1e5)
spoilt("activation", "model.layers.1.post_attention_layernorm.weight", ..., 6e4)
spoilt("letter", "model.embed_tokens.weight", (one(fast(byte_level()), "u"), 0), nan)
