import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from support.making import byte_level, fast, random_llama

random_llama("m", fast(byte_level()), max_position_embeddings=512)
WHOLE = Path("m/model.safetensors").read_bytes()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


def variant(folder, data=None, name="model.safetensors"):
    shutil.copytree("m", folder)
    Path(folder, "model.safetensors").unlink()
    if data is not None:
        Path(folder, name).write_bytes(data)
    return Path(folder)


variant("lfs", POINTER)
variant("half", WHOLE[: len(WHOLE) // 2])
variant("header", WHOLE[:200])
variant("empty", b"")
variant("page", b"<!DOCTYPE html><html>404</html>")
variant("long", WHOLE + bytes(10))
(variant("folder") / "model.safetensors").mkdir()
variant("text", b"Entry not found", "pytorch_model.bin")
torch.save(load_file("m/model.safetensors"), variant("bin") / "pytorch_model.bin")
saved = Path("bin/pytorch_model.bin").read_bytes()
Path("bin/pytorch_model.bin").write_bytes(saved[: len(saved) // 2])
torch.save({**load_file("m/model.safetensors"), "note": Path("x")}, variant("pickle") / "pytorch_model.bin")
variant("none")
weights = load_file("m/model.safetensors")
names = sorted(weights)
shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
for folder in ("shard", "pointer"):
    place = variant(folder)
    save_file({name: weights[name] for name in names[:9]}, place / shards[0], metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shards[i >= 9] for i, name in enumerate(names)}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
Path("pointer", shards[1]).write_bytes(POINTER)
Path("gguf").mkdir()
Path("gguf/a.gguf").write_bytes(POINTER)
shutil.copytree("m", "generation")
Path("generation/generation_config.json").write_text('{"eos_token_id": ')
