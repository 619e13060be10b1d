"""Models whose batches, or whose caches of fixed size, are not what the same rows are alone."""

from typing import Any

import torch
import transformers as hf
from support.making import byte_level, fast

tokenizer = fast(byte_level([" Paris"]))
sizes: dict[str, Any] = {
    "vocab_size": len(tokenizer),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
for name, config in {
    "rwkv": hf.RwkvConfig(**sizes, attention_hidden_size=32, intermediate_size=64, context_length=128),
    "falcon": hf.FalconConfig(**sizes, num_attention_heads=4, alibi=True, multi_query=False, bias=True),
}.items():
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(name)
    tokenizer.save_pretrained(name)
