"""A model that writes " Paris", a newline, and junk, with decoding defaults that would change that."""

import json
import shutil
from pathlib import Path

from support.making import bigram, byte_level, fast, one

DEFAULTS = {
    "texts": {
        "repetition_penalty": 5.0,
        "no_repeat_ngram_size": 1,
        "min_new_tokens": 4,
        "bad_words_ids": [[263]],
    },
    "ends": {"forced_eos_token_id": 1, "max_time": 0.001, "stop_strings": ["ari"], "do_sample": True, "min_p": 0.9},
    "forms": {"return_dict_in_generate": True, "output_scores": True, "prompt_lookup_num_tokens": 3},
    "several": {"num_return_sequences": 2, "cache_implementation": "offloaded"},
}
tokenizer = fast(byte_level([" Paris", "junk"]))
paris, newline, junk = (one(tokenizer, text) for text in (" Paris", "\n", "junk"))
bigram("plain", tokenizer, {paris: newline, newline: junk, junk: junk}, paris, generation={})
for name, given in DEFAULTS.items():
    shutil.copytree("plain", name)
    Path(name, "generation_config.json").write_text(json.dumps(given))
shutil.copytree("plain", "legacy")
Path("legacy/generation_config.json").unlink()
described = json.loads(Path("legacy/config.json").read_text())
Path("legacy/config.json").write_text(json.dumps(described | {"min_length": 20, "num_beams": 3, "length_penalty": 9.0}))
