"""A tokenizer that fills up with a token of its own, which the model's embedding does not have."""

import json
from pathlib import Path

from support.making import bigram, byte_level, fast, one

tokenizer = fast(byte_level([" Paris"]))
rows = len(tokenizer)
bigram("m", tokenizer, {one(tokenizer, " Paris"): one(tokenizer, "\n")}, one(tokenizer, " Paris"))
letters = byte_level([" Paris"])
letters.add_special_tokens(["[PAD]"])
fast(letters, pad_token="[PAD]").save_pretrained("m")
described = json.loads(Path("m/config.json").read_text())
assert described["vocab_size"] == rows
Path("m/config.json").write_text(json.dumps(described | {"pad_token_id": None}))
Path("m/generation_config.json").write_text(json.dumps({"pad_token_id": rows}))
