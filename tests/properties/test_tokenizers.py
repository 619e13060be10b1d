"""Any tokenizer, any texts: a token row is the right one, or a ValueError of one line says what is wrong.

Tokenizers are drawn: tokens that their template puts in front of a text and behind it, pieces that span the end of a
prompt and the start of an option, ids that the model's embedding has no row for. So are texts, with blanks at their
ends and control tokens spelt in them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.cases import cases
from support.making import byte_level, fast, random_llama
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from justforward.commands.cli import main
from justforward.scoring.prompts import PromptEncoder, Row
from justforward.tasks import Sample, Task

SPECIAL = ("[X]", "[Y]", "</s>")
CONTROL = [*SPECIAL, "[PAD]"]
ADDED = "b("
texts = st.text("ab(: \né", max_size=6)
option = st.tuples(texts, st.sampled_from("ab(é")).map("".join)
spelling = st.lists(st.one_of(texts, st.sampled_from(CONTROL)), max_size=4).map("".join)


@dataclass(frozen=True)
class Case:
    """A tokenizer with `first` in front of every text, the rows of an embedding, and a row of a task."""

    tokenizer: PreTrainedTokenizerFast
    first: tuple[str, ...]
    rows: int
    opening: str
    closing: str
    value: str
    options: tuple[str, ...]
    shots: tuple[str, ...]
    max_length: int

    @property
    def task(self) -> Task:
        return Task(
            name="drawn",
            fields={},
            template=lambda row: self.opening + row["text"] + self.closing,
            words=dict(enumerate(self.options)),
            separator="\n\n",
        )

    def sample(self, text: str) -> Sample:
        return self.task.sample({"text": text, "label": 0}, 7)

    def text(self, option: str | None = None) -> str:
        return (self.opening + self.value + self.closing + (option or "")).strip(" ")

    @property
    def context(self) -> str:
        shown = (f"{self.opening}{shot}{self.closing}{self.options[0]}".strip() for shot in self.shots)
        return "".join(text + "\n\n" for text in shown)

    def spells(self) -> bool:
        return any(token in text for token in CONTROL for text in (self.value, *self.shots))

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def encoder(self, **arguments) -> PromptEncoder:
        return PromptEncoder(self.tokenizer, self.task, **arguments)


@st.composite
def situations(draw: st.DrawFn, rows_text=spelling) -> Case:
    first = tuple(draw(st.lists(st.sampled_from(SPECIAL), max_size=3)))
    last = draw(st.lists(st.sampled_from(SPECIAL), max_size=2))
    closing, options = draw(texts), tuple(draw(st.lists(option, min_size=1, max_size=3)))
    if draw(st.integers(0, 9)) == 7:
        options = (*options, draw(st.sampled_from(["", "  "])))
    words = draw(st.lists(st.text("ab(: \n", min_size=2, max_size=4), max_size=4))
    over = draw(st.integers(0, 2))  # so many letters of the prompt's end may stand in one piece with an option's
    words += [closing[-over:] + text[: draw(st.integers(1, 2))] for text in options if over]
    pieces = byte_level([word for word in words if word], specials=SPECIAL)
    pieces.add_special_tokens([AddedToken("[PAD]", special=True, normalized=False)])
    pieces.add_tokens([AddedToken(ADDED, normalized=False)])
    if first or last:
        template = " ".join([*first, "$A", *last])
        pieces.post_processor = TemplateProcessing(template, special_tokens=[(s, i) for i, s in enumerate(SPECIAL)])
    tokenizer = fast(pieces, bos_token=None, pad_token="[PAD]")
    return Case(
        tokenizer,
        first,
        rows=len(tokenizer) - draw(st.integers(0, 2)),
        opening=draw(texts),
        closing=closing,
        value=draw(rows_text),
        options=options,
        shots=tuple(draw(st.lists(rows_text, max_size=2))),
        max_length=draw(st.integers(5, 40)),
    )


def candidates(case: Case, **arguments) -> tuple[PromptEncoder, list[Row]] | str:
    """The rows, or the one line that says what is wrong."""
    try:
        encoder = case.encoder(**arguments)
        shots = [case.sample(text) for text in case.shots]
        return encoder, encoder.candidates(case.sample(case.value), shots)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    return said


@cases(100)
@given(situations())
def test_rows_spell_their_texts(case):
    """Behind all first tokens, and no other control token, stands the text to the byte; ordinary text as ever."""
    made = candidates(case)
    if isinstance(made, str):
        assert "adds no tokens" in made
        assert case.text() in {case.text(option) for option in case.options}
        return
    first = tuple(case.tokenizer.convert_tokens_to_ids(list(case.first)))
    special = set(case.tokenizer.all_special_ids)
    for row, option in zip(made[1], case.options, strict=True):
        text = case.context + case.text(option)
        begin = len(first)
        if not first and row.tokens[0] == case.tokenizer.eos_token_id:  # an empty text stands for what is not there
            assert row.start == 1
            begin = 1
        assert row.tokens[: len(first)] == first
        assert case.tokenizer.decode(row.tokens[begin:]) == text
        assert not special & set(row.tokens[begin:])
        if not case.spells():
            assert list(row.tokens[begin:]) == case.ids(text)


@cases(100)
@given(situations(rows_text=texts))
def test_options_are_scored_from_the_first_token_that_differs(case):
    made = candidates(case)
    if isinstance(made, str):
        return
    encoder, rows = made
    prompt = case.ids(case.context + case.text())
    full = [case.ids(case.context + case.text(option)) for option in case.options]
    begins = {len(row.tokens) - len(ids) for row, ids in zip(rows, full, strict=True)}  # behind the first tokens
    starts = {row.start for row in rows}
    assert len(starts) == len(begins) == 1
    (start,), (begin,) = starts, begins
    before = start - begin
    assert all(ids[:before] == prompt[:before] for ids in full)
    if before < len(prompt):
        assert any(ids[before : before + 1] != prompt[before : before + 1] for ids in full)
        assert encoder.remarks.spanning
    else:
        # What the published runs score: the difference of two token counts.
        alone = [len(case.ids(case.text(option))) - len(case.ids(case.text())) for option in case.options]
        assert [len(row.tokens) - row.start for row in rows] == alone or encoder.remarks.spanning


@cases(100)
@given(situations())
def test_first_tokens_that_a_template_spells_are_not_doubled(case):
    """Not at a row's start, and in no demonstration."""
    case = replace(case, opening=f"b{case.opening}")  # white space there is stripped only where it comes first
    spelt = replace(case, opening="".join(case.first) + case.opening)
    made, plain = candidates(spelt), candidates(case)
    if isinstance(made, str) or isinstance(plain, str):
        assert isinstance(made, str) == isinstance(plain, str)
    else:
        assert made[1] == plain[1]


@cases(100)
@given(situations())
def test_rows_are_cut_behind_their_first_tokens_or_refused(case):
    whole, kept = candidates(case), candidates(case, max_length=case.max_length, refuse_lone_options=True)
    if isinstance(whole, str):
        assert kept == whole
        return
    room = case.max_length - len(case.first)
    scored = [len(row.tokens) - row.start for row in whole[1]]
    lost = [max(0, len(row.tokens) - case.max_length) for row in whole[1]]
    if isinstance(kept, str):
        assert "leaves nothing of its prompt" in kept
        assert any(cut and n >= room for cut, n in zip(lost, scored, strict=True))
        return
    encoder, rows = kept
    for row, uncut, cut, n in zip(rows, whole[1], lost, scored, strict=True):
        begin = len(case.first)
        assert row.tokens == (*uncut.tokens[:begin], *uncut.tokens[begin + cut :])
        assert len(row.tokens) - row.start == n
        assert not cut or row.start > begin
    assert list(encoder.remarks.lost.values()) == [max(lost)]
    said = [line for line in encoder.remarks.lines() if "on the left" in line]
    assert [f"lose up to {max(lost)}" in line for line in said] == ([True] if max(lost) else [])


@cases(100)
@given(situations())
def test_ids_beyond_the_embedding_are_named(case):
    """The last of the vocabulary are pieces, which any text may hold, and [PAD], whose text stays text."""
    made, whole = candidates(case, embedding_rows=case.rows), candidates(case)
    used = set() if isinstance(whole, str) else {token for row in whole[1] for token in row.tokens}
    if outside := {token for token in used if token >= case.rows}:
        assert isinstance(made, str)
        assert f"and the model's embedding has {case.rows} rows: take it out of the text" in made
        assert any(f"token {case.tokenizer.decode([token])!r} of id {token}," in made for token in outside)
    else:
        assert made == whole if isinstance(made, str) else made[1] == whole[1]


@cases(12)
@given(case=situations(rows_text=spelling.filter(str.strip)), run=st.booleans())
def test_through_the_command_line(case, run, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    random_llama("m", case.tokenizer, vocab_size=case.rows, pad_token_id=None)
    write_task(case)
    words = ["--task_file", "t.toml", "--model_name", "m", "--max_length", str(case.max_length), "--result_file", "o"]
    check = ["task", "check", "t.toml", *words[2:6]]
    capfd.readouterr()
    code = main(words if run else check)
    out, err = capfd.readouterr()
    assert code in (0, 2), err
    assert "Traceback" not in err
    if code == 2:
        assert err.splitlines()[-1].startswith("justforward: error: ")
    elif run:
        assert json.loads(Path("o").read_text())["num_eval"] == 2
    elif case.first:
        assert f"every row begins with {' '.join(map(repr, case.first))}\n" in out


def write_task(case: Case) -> None:
    """A task file of the case's texts."""
    shown = {"name": "drawn", "train": "r.jsonl", "validation": "r.jsonl", "label": "label"}
    shown["prompt"] = f"{case.opening}{{text}}{case.closing}"
    lines = [f"{key} = {json.dumps(value)}" for key, value in shown.items()]
    options = [f"{i} = {json.dumps(option)}" for i, option in enumerate(case.options)]
    Path("t.toml").write_text("\n".join([*lines, "[options]", *options]), encoding="utf-8")
    rows = [json.dumps({"text": text, "label": "0"}) for text in (case.value, "a")]
    Path("r.jsonl").write_text("\n".join(rows), encoding="utf-8")
