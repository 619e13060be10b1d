"""A tokenizer that puts BOS in front of every text."""

from support.making import bigram, byte_level, fast, one
from tokenizers.processors import TemplateProcessing

BOS = "<|begin_of_text|>"
pieces = byte_level(["good", "bad"], specials=(BOS, "</s>"))
pieces.post_processor = TemplateProcessing(f"{BOS} $A", special_tokens=[(BOS, 0)])
tokenizer = fast(pieces, bos_token=BOS)
bigram("m", tokenizer, {0: one(tokenizer, "good")}, one(tokenizer, "x"))
plain = fast(byte_level(["good", "bad"], specials=(BOS, "</s>")), bos_token=BOS)  # it has one, and puts it nowhere
bigram("plain", plain, {0: one(plain, "good")}, one(plain, "x"))
