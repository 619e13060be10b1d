"""After its last letter each prompt is continued with a word, a token with a newline in it, and junk."""

from support.making import bigram, byte_level, fast, piece

ENDS = {" Paris": ".\n", " Rome": "\n\n", " Oslo": " \n", " Bern": "!\n", " Lima": "\r\n", " Kiev": "  \n"}
tokenizer = fast(byte_level([*ENDS, *ENDS.values(), "junk"]))
junk = piece(tokenizer, "junk")
table = {junk: junk}
for letter, (word, end) in zip("abcdef", ENDS.items(), strict=True):
    table |= {piece(tokenizer, letter): piece(tokenizer, word), piece(tokenizer, word): piece(tokenizer, end)}
bigram("m", tokenizer, table, junk)
