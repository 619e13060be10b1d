from typing import Any

import torch
import transformers as hf
from support.making import byte_level, fast

tokenizer = fast(byte_level())
ids: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
ids |= {"decoder_start_token_id": 1}
bart: dict[str, Any] = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2}
bart |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 512}
t5: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2}
distilbert: dict[str, Any] = {"vocab_size": len(tokenizer), "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
torch.manual_seed(0)
hf.BartForConditionalGeneration(hf.BartConfig(**ids, **bart)).save_pretrained("bart")
hf.BartForCausalLM(hf.BartConfig(**ids, **bart)).save_pretrained("alone")
hf.T5ForConditionalGeneration(hf.T5Config(**ids, **t5)).save_pretrained("t5")
hf.DistilBertForMaskedLM(hf.DistilBertConfig(**distilbert)).save_pretrained("distilbert")
for folder in ("bart", "alone", "t5", "distilbert"):
    tokenizer.save_pretrained(folder)
