"""Stop tokens and stop texts, for tokenizers of each kind."""

import pytest
import torch
from support.making import byte_level, fast, piece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig

from justforward.scoring.stopping import StopText, stop_tokens, unwritable


def blanks():
    """As SentencePiece: a word has its blank before it, and other letters are bytes."""
    words = ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "▁", "▁Paris", *"END", "a", "b"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast(tokenizer)


def words():
    """Words between blanks; a newline is unknown."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "Paris": 2, ".": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")  # type: ignore[assignment]
    return fast(tokenizer, bos_token=None, unk_token="<unk>")


TURNS = fast(byte_level([".\n"], specials=("<s>", "</s>", "<turn>")))
TURNS_SPECIAL = {"eos": 1, "turn": 2}


@pytest.mark.parametrize(
    ("text", "config", "expected"),
    [
        ("\n", {}, ["\n", 1]),
        (".\n", {}, [".\n", 1]),
        ("ab", {}, [1]),  # no one token writes it
        ("<turn>", {}, [2, 1]),
        ("<turn>\n", {}, [2, 1]),
        ("</s>", {}, [1]),
        ("\n", {"eos_token_id": 2}, ["\n", 1, 2]),
        ("\n", {"eos_token_id": [2, 1]}, ["\n", 1, 2]),
    ],
)
def test_stop_tokens(text, config, expected):
    found = stop_tokens(TURNS, text, GenerationConfig(**config))
    assert found == [piece(TURNS, token) if isinstance(token, str) else token for token in expected]


def test_a_blank_or_an_unknown_letter_is_no_stop_in_place_of_a_newline():
    tokenizer = blanks()
    assert stop_tokens(tokenizer, "\n", GenerationConfig()) == [3, tokenizer.eos_token_id]
    assert stop_tokens(words(), "\n", GenerationConfig()) == [1]
    letters = byte_level()
    letters.normalizer = normalizers.Replace("\n", " ")  # type: ignore[assignment]
    assert stop_tokens(fast(letters), "\n", GenerationConfig()) == [1]


def test_what_a_tokenizer_does_not_keep_is_told():
    for tokenizer, text in ((TURNS, "\n"), (TURNS, "<turn>"), (TURNS, "\n\n"), (blanks(), "\n"), (blanks(), " END")):
        assert unwritable(tokenizer, text) is None
    assert unwritable(words(), ".") is None
    told = unwritable(words(), "\n")
    assert told is not None
    assert told.startswith("--eos_token '\\n': this tokenizer makes '<unk>' of it")
    letters = byte_level()
    letters.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    assert unwritable(fast(letters), "END") is not None
    assert unwritable(fast(letters), "end") is None


def test_only_new_text_counts_and_any_token_may_complete_the_stop():
    tokenizer = fast(byte_level(["END", "ND", "NDs"]))
    prompt = tokenizer.encode("END E")
    rows = {
        **{("ND",): None, ("E", "N", "d"): None, ("E", "x", "ND"): None},
        **{("E", "ND"): 1, ("a", "E", "NDs"): 2, ("END", "END"): 0, ("E", "N", "D", "x"): 2},
    }
    for parts, expected in rows.items():
        ids = [*prompt, *(piece(tokenizer, part) for part in parts)]
        stop = StopText(tokenizer, "END", len(prompt), {})
        done = [stop(torch.tensor([ids[: len(prompt) + n + 1]]), None).item() for n in range(len(parts))]
        assert (done.index(True) if any(done) else None) == expected, parts


def test_a_stop_that_is_written_byte_by_byte():
    tokenizer = fast(byte_level())
    stop = StopText(tokenizer, "。", 0, {})
    ids = tokenizer.encode("a。b")
    done = [stop(torch.tensor([ids[: n + 1]]), None).item() for n in range(len(ids))]
    assert done == [False, False, False, True, False]
    blank = blanks()
    assert StopText(blank, "é", 0, {})(torch.tensor([[12, 4, 5]]), None).item()
    assert StopText(blank, " ", 0, {})(torch.tensor([[9, 7]]), None).item()  # "▁Paris" writes the blank before it
