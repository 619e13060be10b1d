import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from support.making import byte_level, fast, random_llama

random_llama("m", fast(byte_level()), max_position_embeddings=512)
WEIGHTS = load_file("m/model.safetensors")
BODY = {name: value for name, value in WEIGHTS.items() if name != "lm_head.weight"}


def variant(folder, weights):
    shutil.copytree("m", folder)
    save_file(weights, f"{folder}/model.safetensors", metadata={"format": "pt"})


variant("compiled", {f"_orig_mod.{name}": value for name, value in WEIGHTS.items()})
variant("base", {name.removeprefix("model."): value for name, value in BODY.items()})
variant("tied", BODY)
path = Path("tied/config.json")
path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
