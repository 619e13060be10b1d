import json
from pathlib import Path

from support.making import byte_level, fast, random_llama

random_llama("mix", fast(byte_level()))
for folder in ("lora", "mix"):
    Path(folder).mkdir(exist_ok=True)
    told = {"peft_type": "LORA", "base_model_name_or_path": "base", "task_type": "CAUSAL_LM"}
    Path(folder, "adapter_config.json").write_text(json.dumps(told))
Path("log").mkdir()
Path("log/trajectory.log").write_bytes(b"JFTRAJ1")
