"""A model that writes " good" behind <|im_end|> and </s>, and " bad" behind ">"; and a tokenizer of whole words."""

from support.making import bigram, byte_level, fast, one, random_llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

SPECIAL = ("<s>", "</s>", "<|im_end|>")
pieces = byte_level([" good", " bad"], specials=SPECIAL)
pieces.post_processor = TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
tokenizer = fast(pieces)
good, bad = one(tokenizer, " good"), one(tokenizer, " bad")
bigram("m", tokenizer, {1: good, 2: good, one(tokenizer, ">"): bad}, bad)

words = [(word, 0.0) for word in ("<unk>", *SPECIAL, "▁good", "▁bad", "▁use", "▁or", "▁here", "▁is", "▁a", "▁film")]
letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz<>/_|"]
unigram = Tokenizer(models.Unigram([*words, *letters], unk_id=0))
unigram.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
unigram.decoder = decoders.Metaspace()  # type: ignore[assignment]
unigram.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", *SPECIAL)])
random_llama("words", fast(unigram, unk_token="<unk>"))
