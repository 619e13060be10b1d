import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.making import byte_level, fast, random_llama

random_llama("m", fast(byte_level()), max_position_embeddings=512)
WEIGHTS = load_file("m/model.safetensors")


def variant(folder, weights, **config):
    shutil.copytree("m", folder)
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})
    path = Path(folder, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def renamed(old, new):
    return {name.replace(old, new): value for name, value in WEIGHTS.items()}


q, up = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
variant("layers", WEIGHTS, num_hidden_layers=1)
variant("lora", {**WEIGHTS, f"{q}.lora_A.default.weight": torch.zeros(8, 32)})
variant("bias", {**WEIGHTS, f"{q}.bias": torch.zeros(32)})
variant("fp8", {**WEIGHTS, f"{up}.weight_scale_inv": torch.ones(1, 1)})
variant("rows", {**WEIGHTS, "lm_head.weight": torch.zeros(10, 32)})
variant("whole", {**WEIGHTS, "lm_head.weight": WEIGHTS["lm_head.weight"].to(torch.int8)})
more = {"model.layers.0.self_attn.bias": torch.ones(1, 1, 4, 4), "v_head.summary.weight": torch.zeros(1, 32)}
more |= {"vision_tower.layers.0.attn.weight": torch.zeros(2, 2)}
variant("harmless", {**WEIGHTS, **more, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
