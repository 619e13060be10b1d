"""After its last letter each prompt is continued with an answer, the stop text "END" in various tokens, and junk."""

from support.making import bigram, byte_level, fast, piece

WAYS = {
    "a": [" one", "END"],
    "b": [" two", "E", "ND"],
    "c": [" three", "xEN", "Dy"],
    "d": [" four", "EEN", "Dz"],
    "e": [" five", "ENDEND"],
    "f": [" six", "\nE", "n"],
}
tokenizer = fast(byte_level(["junk", *(token for way in WAYS.values() for token in way if len(token) > 1)]))
junk = piece(tokenizer, "junk")
table = {junk: junk}
for letter, way in WAYS.items():
    ids = [piece(tokenizer, token) for token in (letter, *way)]
    table |= dict(zip(ids, [*ids[1:], junk], strict=True))
bigram("m", tokenizer, table, junk)
