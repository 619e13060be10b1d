import json
import shutil
from pathlib import Path

from support.making import byte_level, fast, random_llama

random_llama("nope", fast(byte_level([" good"])), max_position_embeddings=512)
for folder in ("list", "type", "length"):
    shutil.copytree("nope", folder)
Path("list/config.json").write_text("[1]")
told = json.loads(Path("type/config.json").read_text())
Path("type/config.json").write_text(json.dumps({**told, "hidden_size": "x"}))
told = json.loads(Path("length/tokenizer_config.json").read_text())
Path("length/tokenizer_config.json").write_text(json.dumps({**told, "model_max_length": "x"}))
told = json.loads(Path("nope/tokenizer.json").read_text())
told["model"]["type"] = "Nope"
Path("nope/tokenizer.json").write_text(json.dumps(told))
