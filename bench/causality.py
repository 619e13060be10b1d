"""How far earlier logits change by later tokens, and what text does not reach, in every family that transformers has.

    python -m bench.causality            # all families, in every dtype
    python -m bench.causality bert opt   # some

A family is made small from its own default configuration; those whose sizes do not fit each other then are counted.
The tolerances of `justforward.models.causality` lie between the two kinds that this finds.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bench.common import report
from justforward.models.causality import EARLIER, change_of_earlier, is_causal, plain_tokens
from justforward.models.towers import unseen_towers

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
NOT_CAUSAL = {
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
    *("cpmant", "prophetnet", "xlm", "xlnet", "xmod"),
}
"""As their default configurations are; most become causal with `is_decoder`."""

VOCABULARY, MOST_WEIGHTS = 97, 40_000_000
SIZES = {
    r"vocab_size(_per_layer_input)?|n_words": VOCABULARY,
    r"num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|num_blocks|depth": 2,
    r"(.*_)?num_(attention|key_value|kv)_heads|(.*_)?n_heads?|(.*_)?num_heads|(en|de)coder_attention_heads": 4,
    r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_(target|source)_positions": 64,
    r".*(intermediate_size|ffn_dim|n_inner|ffn_hidden_size|ffn_size|ffw_dim|dim_ff|d_ff|d_inner)": 64,
    r".*(hidden_size|n_embd|d_model|embed_dim|embedding_size|hidden_dim|lru_width|emb_dim)|dim|d_embed": 32,
    r"num_local_experts|(moe_)?num_experts|n_routed_experts": 4,
    r"num_experts_per_tok|moe_topk|moe_k|top_k_experts": 2,
    r"(.*_)?head_dim|d_head|rotary_dim|.*lora_rank": 8,
}
"""What a field becomes, at most, by its whole name; the first that fits."""


def tiny_config(family: str) -> PreTrainedConfig:
    """A family's default configuration with small sizes. Raises whatever it raises where they do not fit."""
    kind = CONFIG_MAPPING[family]
    values = dict(_small(kind().to_dict()))
    for name in ("model_type", "transformers_version", "architectures", "_name_or_path"):
        values.pop(name, None)
    return kind(**values)


def tiny_model(family: str) -> PreTrainedModel:
    """A random model of `tiny_config`. Raises MemoryError for one that is not small all the same."""
    config = tiny_config(family)
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > MOST_WEIGHTS:
        raise MemoryError(f"{size:,} weights")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def _small(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    layers = next((values[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if name in values), None)
    for name, value in values.items():
        if isinstance(value, Mapping) and name.endswith("config"):
            yield name, dict(_small(value))
        elif (isinstance(value, list) and len(value) == layers) or name == "per_layer_config":
            continue  # one for each block
        elif isinstance(value, bool) or not isinstance(value, int):
            yield name, value
        elif name.endswith(("token_id", "token_index")):
            yield name, min(value, VOCABULARY - 1)
        else:
            size = next((size for pattern, size in SIZES.items() if re.fullmatch(pattern, name)), value)
            yield name, min(value, size)


def main() -> None:
    """Report what was found, in a line for each dtype and one for the towers."""
    families = sys.argv[1:] if sys.argv[0].endswith("causality.py") and sys.argv[1:] else FAMILIES
    models: dict[str, PreTrainedModel] = {}
    failed: dict[str, str] = {}
    for family in families:
        try:
            models[family] = tiny_model(family)
            models[family](input_ids=torch.tensor([[5, 6]]), use_cache=False)
        except Exception as error:
            models.pop(family, None)
            failed[family] = f"{type(error).__name__}: {str(error)[:60]}"
    towers = {family: found for family, model in models.items() if (found := unseen_towers(model))}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        shares: dict[str, float] = {}
        for family, model in models.items():
            torch.nn.Module.to(model, dtype)
            try:
                moved, later, _ = change_of_earlier(model, plain_tokens(model, None, EARLIER + 2))
                shares[family] = moved / max(later, 1e-30)
            except RuntimeError as error:
                failed[f"{family} in {dtype}"] = str(error)[:60]
        causal = {family: share for family, share in shares.items() if family not in NOT_CAUSAL}
        others = {family: share for family, share in shares.items() if family in NOT_CAUSAL}
        wrong = [f for f in shares if is_causal(models[f], plain_tokens(models[f], None, EARLIER + 2)) == (f in others)]
        report(
            f"change of earlier logits over that of later ones, {str(dtype).removeprefix('torch.')}",
            families=len(shares),
            causal={"most": max(causal.values(), default=None), "of": len(causal)},
            not_causal={"least": min(others.values(), default=None), "of": len(others)},
            wrong=wrong,
        )
    report("parts that text does not reach", towers=towers)
    report("families not made small", count=len(failed), why=failed)


if __name__ == "__main__":
    main()
