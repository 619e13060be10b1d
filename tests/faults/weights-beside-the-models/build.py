import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.making import byte_level, fast, random_llama

random_llama("harmless", fast(byte_level()), max_position_embeddings=512)
shutil.copytree("harmless", "layers")
path = Path("layers/config.json")
path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 1}))
weights = {**load_file("harmless/model.safetensors"), "v_head.summary.weight": torch.zeros(1, 32)}
save_file(weights, "harmless/model.safetensors", metadata={"format": "pt"})
