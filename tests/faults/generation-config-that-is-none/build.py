"""Files in place of generation_config.json: its end tokens would be lost without a word."""

import shutil
from pathlib import Path

from support.making import byte_level, fast, random_llama

random_llama("m", fast(byte_level()))
for name, text in {
    "cut": '{"eos_token_id": [1,',
    "empty": "",
    "pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 20\n",
    "list": "[1, 2]",
}.items():
    shutil.copytree("m", name)
    Path(name, "generation_config.json").write_text(text)
