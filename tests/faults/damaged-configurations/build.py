import json
import shutil
from pathlib import Path

from support.making import byte_level, fast, random_llama

random_llama("m", fast(byte_level([" good"])), max_position_embeddings=512)


def variant(folder, name, change):
    shutil.copytree("m", folder)
    path = Path(folder, name)
    held = json.loads(path.read_text())
    path.write_text(json.dumps(change(held) or held))


variant("nope", "tokenizer.json", lambda held: held["model"].update(type="Nope"))
variant("merges", "tokenizer.json", lambda held: held["model"].update(merges=[["zz", "qq"]]))
variant("list", "config.json", lambda held: [1])
variant("type", "config.json", lambda held: held.update(hidden_size="x"))
variant("zero", "config.json", lambda held: held.update(num_attention_heads=0))
variant("unknown", "config.json", lambda held: held.update(model_type="nope"))
code = {"AutoConfig": "c.C", "AutoModelForCausalLM": "c.M"}
variant("code", "config.json", lambda held: held.update(model_type="nope", auto_map=code))
shutil.copytree("m", "cut")
Path("cut/tokenizer.json").write_text(Path("m/tokenizer.json").read_text()[:300])
shutil.copytree("m", "without")
Path("without/tokenizer.json").unlink()
shutil.copytree("m", "swapped")
shutil.copy("m/tokenizer.json", "swapped/tokenizer_config.json")
