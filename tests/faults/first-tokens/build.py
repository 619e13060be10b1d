"""Tokenizers whose templates put tokens in front, behind, or both."""

from support.making import bigram, byte_level, fast, one
from tokenizers.processors import TemplateProcessing

SPECIAL = ("[X]", "[Y]", "</s>")

for name, template in {
    "two": "[X] [Y] $A",
    "three": "[X] [X] [Y] $A",
    "both": "[X] $A </s>",
    "append": "$A </s>",
}.items():
    pieces = byte_level(["good", "bad"], specials=SPECIAL)
    pieces.post_processor = TemplateProcessing(template, special_tokens=[(s, i) for i, s in enumerate(SPECIAL)])
    tokenizer = fast(pieces, bos_token=None)
    good, bad = one(tokenizer, "good"), one(tokenizer, "bad")
    bigram(name, tokenizer, {0: bad, 1: good}, one(tokenizer, "x"))
