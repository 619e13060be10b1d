"""Tiny checkpoints made on purpose: what their tokenizers split and what they write is known.

A "bigram" model continues a token with the one that a table names, so a test knows the text that it generates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<s>", "</s>")


def byte_level(words: Sequence[str] = (), specials: Sequence[str] = SPECIAL) -> Tokenizer:
    """Byte-level BPE: `specials` are the first ids, then come all bytes, then the pieces of `words` and `words`."""
    vocabulary: dict[str, int] = {}
    for token in [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]:
        vocabulary[token] = len(vocabulary)
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: list[tuple[str, str]] = []
    for word in words:
        letters = cutter.pre_tokenize_str(word)[0][0]
        piece = letters[0]
        for letter in letters[1:]:
            if (piece, letter) not in merges:
                merges.append((piece, letter))
            piece += letter
            vocabulary.setdefault(piece, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = cutter  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def fast(tokenizer: Tokenizer, **special: Any) -> PreTrainedTokenizerFast:
    """As transformers has it; "<s>" begins, "</s>" ends and pads, unless told otherwise."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", **special}
    given = {name: token for name, token in names.items() if token is not None}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **given)


def one(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The id of a text that is one token."""
    (token,) = tokenizer.encode(text, add_special_tokens=False)
    return token


def piece(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The id of the token that writes a text, also where other tokens are made of the text."""
    (letters, _), *_ = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return tokenizer.get_vocab()[letters]


def bigram(
    folder: str | Path,
    tokenizer: PreTrainedTokenizerFast,
    table: Mapping[int, int],
    default: int,
    *,
    rows: int | None = None,
    generation: Mapping[str, Any] | None = None,
    **config: Any,
) -> None:
    """Save a Llama that continues token a with table[a], else with `default`.

    rows: of its embedding, where not as many as the tokenizer has; generation: its generation_config.json.
    """
    torch.manual_seed(0)
    rows, width = rows or len(tokenizer), 512
    assert rows <= width
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, tie_word_embeddings=False, **{**sizes, **ids, **config}))
    embedding = torch.eye(rows, width)
    head = 0.001 * torch.randn(rows, width)
    for token in range(rows):
        head[table.get(token, default)] += embedding[token] * (40 / width**0.5)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(head)
        for layer in model.model.layers:
            for block in (layer.self_attn.o_proj, layer.mlp.down_proj):  # type: ignore[union-attr]
                block.weight.zero_()  # type: ignore[operator]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if generation is not None:
        (Path(folder) / "generation_config.json").write_text(json.dumps(generation))


def random_llama(folder: str | Path, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **config: Any) -> None:
    """Save a tiny random Llama, 32 wide and two layers deep."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes |= {"vocab_size": len(tokenizer), "tie_word_embeddings": False, **ids, **config}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
