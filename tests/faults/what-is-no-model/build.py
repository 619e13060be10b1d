import json
import shutil
from pathlib import Path

from support.making import byte_level, fast, random_llama

tokenizer = fast(byte_level())
random_llama("base", tokenizer, max_position_embeddings=512)


def adapter(folder, kind):
    Path(folder).mkdir(exist_ok=True)
    told = {"peft_type": kind, "base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}
    Path(folder, "adapter_config.json").write_text(json.dumps(told))


adapter("lora", "LORA")
adapter("prefix", "PREFIX_TUNING")
shutil.copytree("base", "mix")
adapter("mix", "LORA")
adapter("broken", "LORA")
Path("broken/adapter_config.json").write_text('{"peft_type": ')
Path("log/checkpoint-4").mkdir(parents=True)
Path("log/trajectory.log").write_bytes(b"JFTRAJ1")
Path("log/checkpoint-4/trajectory.json").write_text('{"step": 4, "from": null}')
shutil.copytree("base", "runs/checkpoint-8")
Path("rows").mkdir()
Path("rows/train.jsonl").write_text("{}")
tokenizer.save_pretrained("tokenizer")
Path("weights").mkdir()
shutil.copy("base/model.safetensors", "weights")
Path("empty").mkdir()
