"""A model that writes " Paris", an end token of turns, and junk; who names that end token differs."""

import json
import shutil
from pathlib import Path

from support.making import bigram, byte_level, fast, one


def variant(name, config, generation, source="m"):
    shutil.copytree(source, name)
    Path(name, "generation_config.json").unlink(missing_ok=True)
    described = json.loads(Path(name, "config.json").read_text())
    Path(name, "config.json").write_text(json.dumps(described | config))
    if generation is not None:
        Path(name, "generation_config.json").write_text(json.dumps(generation))


letters = byte_level([" Paris", "junk"], specials=("<s>", "</s>", "<|im_end|>", "<end_of_turn>"))
tokenizer = fast(letters)
paris, junk = one(tokenizer, " Paris"), one(tokenizer, "junk")
bigram("m", tokenizer, {paris: 3, 3: junk, junk: junk}, paris)
variant("generation-list", {}, {"eos_token_id": [1, 3]})
variant("generation-one", {}, {"eos_token_id": 3})
variant("config-list", {"eos_token_id": [1, 3]}, None)
variant("config-beside", {"eos_token_id": [1, 3]}, {"eos_token_id": 1})
variant("nobody", {}, {})
bigram("none", fast(letters, eos_token=None, pad_token=None), {paris: 3, 3: junk, junk: junk}, paris)
variant("no-tokenizer-end", {}, {"eos_token_id": 3}, "none")
