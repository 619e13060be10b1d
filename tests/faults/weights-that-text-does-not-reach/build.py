from typing import Any

import torch
import transformers as hf
from support.making import byte_level, fast

tokenizer = fast(byte_level())
text: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2}
text |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512}
text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
vision: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
vision |= {"image_size": 8, "patch_size": 4}
torch.manual_seed(0)
hf.GitForCausalLM(hf.GitConfig(vision_config=vision, **text)).save_pretrained("git")
gemma = hf.Gemma3Config(
    text_config={**text, "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 64},
    vision_config={**vision, "vision_use_head": False},
    mm_tokens_per_image=1,
    image_token_index=200,
)
hf.Gemma3ForConditionalGeneration(gemma).save_pretrained("gemma3")
for folder in ("git", "gemma3"):
    tokenizer.save_pretrained(folder)
