"""Tokenizers with one token more than the model has embeddings."""

import json
from pathlib import Path

from support.making import bigram, byte_level, fast, one
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

ROWS = 263
for name, token, special in (("pad", "[PAD]", True), ("added", "<tool>", False), ("first", "[BOS]", True)):
    pieces = byte_level([" good"])
    for i in range(ROWS - pieces.get_vocab_size()):
        pieces.add_tokens([AddedToken(f"<{i}>")])
    pieces.add_tokens([AddedToken(token, special=special, normalized=False)])
    if name == "first":
        pieces.post_processor = TemplateProcessing(f"{token} $A", special_tokens=[(token, ROWS)])
    tokenizer = fast(pieces)
    assert one(tokenizer, token) == ROWS
    bigram(name, tokenizer, {}, one(tokenizer, " good"), rows=ROWS)
    if name == "pad":
        fast(pieces, pad_token=token).save_pretrained(name)
        config = json.loads(Path(name, "config.json").read_text())
        Path(name, "config.json").write_text(json.dumps(config | {"pad_token_id": ROWS}))
