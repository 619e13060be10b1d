"""Token rows: first tokens, boundaries, control tokens in rows, truncation, and what is said of them."""

import logging
from dataclasses import replace

import pytest
from support.making import byte_level, fast, one
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from justforward.scoring.prompts import PromptEncoder
from justforward.scoring.remarks import cut_facts
from justforward.scoring.tokens import first_tokens
from justforward.tasks import Task
from justforward.training.objectives import OBJECTIVES

SPECIAL = ("<s>", "</s>", "<|im_end|>")


def made(words=(), template="<s> $A"):
    pieces = byte_level(words, specials=SPECIAL)
    if template:
        pieces.post_processor = TemplateProcessing(template, special_tokens=[(s, i) for i, s in enumerate(SPECIAL)])
    return fast(pieces)


def task(words=(" yes", " no"), **parts):
    parts = {"template": lambda row: row["text"], "correct": lambda row: 0, **parts}
    return Task(name="t", fields={"text": str}, words=dict(enumerate(words)), **parts)


def sample(own, text, index=0):
    return own.sample({"text": text}, index)


def test_first_tokens_are_those_in_front():
    templates = {None: (), "$A </s>": (), "<s> $A </s>": (0,), "<s> </s> $A": (0, 1), "<s> <s> </s> $A": (0, 0, 1)}
    assert {template: first_tokens(made(template=template)) for template in templates} == templates
    assert first_tokens(ByT5Tokenizer()) == ()


def test_a_given_bos_token_is_the_only_first():
    own = task()
    encoder = PromptEncoder(made(template="<s> </s> $A"), own, bos_token_id=5)
    assert encoder.candidates(sample(own, "q"))[0].tokens[:2] == (5, one(made(), "q"))
    # Only control tokens are taken for a first token that stands there: the text's own letter stays.
    letter = one(made(), "q")
    encoder = PromptEncoder(made(), own, bos_token_id=letter)
    assert encoder.generation(replace(sample(own, "qa"), candidates=None))[:3] == (letter, letter, one(made(), "a"))


def test_the_whole_text_is_trained_on_behind_all_first_tokens():
    own = task()
    row = PromptEncoder(made(template="<s> </s> $A"), own).gold(sample(own, "q"), only_option=False)
    assert row.start == 2


@pytest.mark.parametrize(
    ("words", "prompt", "options", "scored"),
    [
        (["(A", "(B"], "is(", ["A)", "B)"], ["(A )", "(B )"]),
        (["(A"], "is(", ["A)", "B)"], ["(A )", "( B )"]),  # both from the bracket on, also where it is its own token
        (["(A", "(B"], "is(", ["A", "B"], ["(A", "(B"]),
        (["(A", "(B"], "(", ["A", "B"], ["(A", "(B"]),
        (["is(A"], "is(", ["A)", "B)"], ["is(A )", "is( B )"]),
        (["(A"], "is", ["(A", "(B"], ["(A", "( B"]),  # nothing spans
    ],
)
def test_options_are_scored_from_a_token_that_spans_the_boundary(words, prompt, options, scored):
    tokenizer, own = made(words), task(options)
    encoder = PromptEncoder(tokenizer, own)
    rows = encoder.candidates(sample(own, prompt))
    assert [" ".join(tokenizer.convert_ids_to_tokens(list(row.tokens[row.start :]))) for row in rows] == scored
    assert len({row.tokens[: row.start] for row in rows}) == 1
    assert bool(encoder.remarks.spanning) == (prompt != "is")
    gold = encoder.gold(sample(own, prompt))
    assert gold == rows[0]


def test_a_token_that_spans_a_demonstration_and_the_option():
    """Nothing stands between them, as in calibration: "ab" is one token, and behind a line break it is two."""
    tokenizer = made(["\na", "ab"])
    own = task(["ab", "b"], calibration=lambda row: "", separator="\n")
    encoder = PromptEncoder(tokenizer, own)
    rows = encoder.candidates(sample(own, "q"), [sample(own, "x")], calibration=True)
    shown = [[tokenizer.decode([i]) for i in row.tokens] for row in rows]
    assert shown == [["<s>", "x", "ab", "\na", "b"], ["<s>", "x", "ab", "\n", "b"]]
    assert [row.start for row in rows] == [3, 3]


def test_an_option_that_adds_nothing_is_refused_with_a_mend():
    own = task([" ", " x"])
    message = r"^a candidate adds no tokens to its prompt, so it has no probability: give it a text .* \(row 3: 'q'\)$"
    with pytest.raises(ValueError, match=message):
        PromptEncoder(made(), own).candidates(sample(own, "q", 3))


def test_no_token_before_the_first_to_score_needs_one():
    own = task(["A", "B"])
    pieces = byte_level(["(A", "(B"], specials=())
    tokenizer = fast(pieces, bos_token=None, eos_token=None, pad_token=None)
    with pytest.raises(ValueError, match=r"nothing stands before the first token to score.*give --bos_token_id"):
        PromptEncoder(tokenizer, own).candidates(sample(own, "("))


def test_a_rows_control_tokens_are_text_and_a_templates_are_not():
    tokenizer = made([" or"])
    own = task(template=lambda row: f"<|im_end|>{row['text']}</s>")
    encoder = PromptEncoder(tokenizer, own)
    ids = encoder.candidates(sample(own, "a</s> or<|im_end|>"))[0].tokens
    assert [i for i in ids if i < len(SPECIAL)] == [0, 2, 1]
    assert tokenizer.decode(list(ids)) == "<s><|im_end|>a</s> or<|im_end|></s> yes"
    assert one(tokenizer, " or") in ids
    assert next(iter(encoder.remarks.control.values())) == {"</s>", "<|im_end|>"}


def test_control_tokens_of_options_answers_and_nested_fields_are_text():
    own = task(
        template=lambda row: row["deep"]["list"][0],
        candidates=lambda row: (row["text"], "x"),
        option=lambda row, candidate: f" {candidate}",
        correct=lambda row: row["text"],
    )
    row = own.sample({"text": "</s>", "deep": {"list": ["<s>"]}}, 0)
    encoder = PromptEncoder(made(), own)
    for ids in (encoder.gold(row).tokens, *(r.tokens for r in encoder.candidates(row, [row]))):
        assert [i for i in ids if i < len(SPECIAL)] == [0]
    writes = task(generation=True, correct=lambda row: ("</s>",), option=lambda row, answer: f" {answer}\n")
    encoder = PromptEncoder(made(), writes, max_length=100)
    ids = encoder.generation(sample(writes, "q"), [sample(writes, "<s>")])
    assert [i for i in ids if i < len(SPECIAL)] == [0]


def test_markup_makes_control_tokens_of_a_rows_text():
    own = task(markup=True)
    encoder = PromptEncoder(made(), own)
    assert encoder.candidates(sample(own, "<s>a</s>"))[0].tokens[:3] == (0, one(made(), "a"), 1)
    assert not encoder.remarks.control


def test_tokenizers_without_a_backend_keep_text_too():
    own = task()
    tokenizer = ByT5Tokenizer()
    ids = PromptEncoder(tokenizer, own).candidates(sample(own, "a </s> b"))[0].tokens
    assert tokenizer.decode(list(ids)) == "a </s> b yes"
    assert tokenizer.eos_token_id not in ids


def test_rows_without_control_tokens_are_not_touched():
    own = task()
    row = sample(own, "a < s > b")
    assert PromptEncoder(made(), own).tokenize.as_text(row) is row


def test_ids_beyond_the_embedding_are_refused():
    pieces = byte_level()
    rows = pieces.get_vocab_size()
    pieces.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer, own = fast(pieces), task()
    encoder = PromptEncoder(tokenizer, own, embedding_rows=rows)
    assert encoder.candidates(sample(own, "q"))
    wanted = (
        f"the text holds the token '<tool>' of id {rows}, and the model's embedding has {rows} rows: .* \\(row 2\\)"
    )
    with pytest.raises(ValueError, match=wanted):
        encoder.candidates(sample(own, "q<tool>", 2))
    with pytest.raises(ValueError, match=wanted):
        encoder.generation(sample(own, "q<tool>", 2))
    with pytest.raises(ValueError, match="every prompt begins with the token '<tool>'"):
        PromptEncoder(tokenizer, own, embedding_rows=rows, bos_token_id=rows)
    assert PromptEncoder(tokenizer, own, embedding_rows=rows + 1).candidates(sample(own, "q<tool>"))


def test_what_is_cut_is_said_once_and_counted(caplog):
    own = task()
    encoder = PromptEncoder(made(), own, max_length=10)
    rows = [sample(own, "q" * n, n) for n in (3, 8, 12)]
    with caplog.at_level(logging.WARNING, "justforward"), encoder.noting("training rows") as remarks:
        for row in rows:
            OBJECTIVES.get("classification")().encode(encoder, row)
    assert [remarks.tokens_lost(row) for row in rows] == [0, 3, 7]
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 training rows are longer than 10 tokens and lose up to 7 on the left: raise --max_length, as far as "
        "the model has positions, or give shorter texts or fewer demonstrations"
    ]
    assert cut_facts(map(remarks.tokens_lost, rows), "train_") == {"train_cut_rows": 2, "train_most_tokens_cut": 7}
    assert cut_facts([0, 0]) == {}


def test_an_option_that_leaves_no_prompt_is_refused_where_asked_to():
    own = task([" yes", " a long answer"])
    row = sample(own, "q" * 20, 5)
    published = PromptEncoder(made(), own, max_length=15).candidates(row)
    assert [len(r.tokens) - r.start for r in published] == [4, 14]
    encoder = PromptEncoder(made(), own, max_length=15, refuse_lone_options=True)
    with pytest.raises(
        ValueError, match=r"an answer of 14 tokens leaves nothing of its prompt in 15 tokens.*\(row 5\)"
    ):
        encoder.candidates(row)
    assert encoder.gold(row).start == 11
    wrong = replace(row, correct=1)
    with pytest.raises(ValueError, match="leaves nothing of its prompt"):
        encoder.gold(wrong)
    assert encoder.gold(wrong, only_option=False).start == 1  # the text's end is as good to train on


def test_no_room_behind_the_first_tokens():
    with pytest.raises(ValueError, match="max_length 3 leaves no room for a prompt"):
        PromptEncoder(made(template="<s> <s> </s> $A"), task(), max_length=3)
