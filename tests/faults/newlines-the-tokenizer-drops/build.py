"""Tokenizers that make a blank of a newline, or nothing; the model writes " Paris", " xy" and its end token."""

from support.making import bigram, byte_level, fast, one
from tokenizers import normalizers

for name, normalizer in {
    "blank": normalizers.Replace("\n", " "),
    "nothing": normalizers.Replace("\n", ""),
    "nmt": normalizers.Nmt(),
}.items():
    letters = byte_level([" Paris", " xy"])
    letters.normalizer = normalizer  # type: ignore[assignment]
    tokenizer = fast(letters)
    paris, xy = one(tokenizer, " Paris"), one(tokenizer, " xy")
    bigram(name, tokenizer, {paris: xy, xy: 1}, paris)
