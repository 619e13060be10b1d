from typing import Any

import torch
import transformers as hf
from support.making import byte_level, fast

tokenizer = fast(byte_level())
sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
sizes |= {"num_attention_heads": 2}
ids: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
bert: dict[str, Any] = {**sizes, **ids, "intermediate_size": 32, "max_position_embeddings": 512}
xlnet: dict[str, Any] = {"vocab_size": len(tokenizer), "d_model": 32, "n_layer": 2, "n_head": 2, **ids}
xlnet |= {"d_inner": 32, "d_head": 16}
torch.manual_seed(0)
hf.BertForMaskedLM(hf.BertConfig(**bert)).save_pretrained("bert")
hf.RobertaForMaskedLM(hf.RobertaConfig(**bert)).save_pretrained("roberta")
hf.XLNetLMHeadModel(hf.XLNetConfig(**xlnet)).save_pretrained("xlnet")
hf.BertLMHeadModel(hf.BertConfig(**bert, is_decoder=True)).save_pretrained("decoder")
for folder in ("bert", "roberta", "xlnet", "decoder"):
    tokenizer.save_pretrained(folder)
