import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.making import byte_level, fast, random_llama

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
random_llama("half", fast(byte_level()), max_position_embeddings=512)
for folder in ("lfs", "pickle"):
    shutil.copytree("half", folder)
whole = Path("half/model.safetensors").read_bytes()
torch.save({**load_file("half/model.safetensors"), "note": Path("x")}, "pickle/pytorch_model.bin")
Path("pickle/model.safetensors").unlink()
Path("half/model.safetensors").write_bytes(whole[: len(whole) // 2])
Path("lfs/model.safetensors").write_bytes(POINTER)
Path("gguf").mkdir()
Path("gguf/a.gguf").write_bytes(POINTER)
