"""Generation configs of published models that transformers' check of what is saved refuses."""

import json
import shutil
from pathlib import Path

from support.making import byte_level, fast, random_llama

random_llama("m", fast(byte_level()))
for name, given in {
    "sampling": {"temperature": 0.9, "top_p": 0.6, "repetition_penalty": 1.1, "eos_token_id": 1},
    "beams": {"length_penalty": 2.0, "early_stopping": True, "pad_token_id": -1},
}.items():
    shutil.copytree("m", name)
    Path(name, "generation_config.json").write_text(json.dumps(given))
