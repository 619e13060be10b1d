"""A model that writes "(B" behind ":", and ")" behind that."""

from support.making import bigram, byte_level, fast, one

tokenizer = fast(byte_level(["(A", "(B"]))
bigram("m", tokenizer, {one(tokenizer, ":"): one(tokenizer, "(B")}, one(tokenizer, ")"))
