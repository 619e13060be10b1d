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


variant("tied", {name: value for name, value in WEIGHTS.items() if name != "lm_head.weight"}, tie_word_embeddings=True)
variant("compiled", {f"_orig_mod.{name}": value for name, value in WEIGHTS.items()})
variant("parallel", {f"module.{name}": value for name, value in WEIGHTS.items()})
variant("student", {f"student.{name}": value for name, value in WEIGHTS.items()})
variant("base", {name.removeprefix("model."): value for name, value in WEIGHTS.items() if name != "lm_head.weight"})
variant("few", {name: value for name, value in WEIGHTS.items() if ".layers.1." not in name})
variant("norm", {name: value for name, value in WEIGHTS.items() if "layers.1.input_layernorm" not in name})
variant("unmerged", renamed("q_proj.weight", "q_proj.base_layer.weight"))
variant("gptq", renamed("proj.weight", "proj.qweight"))
variant("other", {f"encoder.{i}.w": torch.zeros(2, 2) for i in range(3)})
