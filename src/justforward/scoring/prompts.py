"""A sample and its demonstrations -> token rows with the span to score (first tokens, truncation, option lengths).

Reproduces the token rows of Malladi et al. (2023): the whole text is tokenised at once, and rows that are too long lose
tokens from the left, behind the first tokens. There, an option's length is the difference of two token counts. Here, it
is what follows the tokens that the text shares with its prompt alone: the same, unless a token spans the boundary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from justforward.scoring.remarks import Remarks
from justforward.scoring.tokens import TextTokenizer

if TYPE_CHECKING:
    from justforward.tasks.base import Sample, Task

logger = logging.getLogger(__name__)

ADDS_NONE = "a candidate adds no tokens to its prompt, so it has no probability"


@dataclass(frozen=True, slots=True)
class Row:
    """One token row; `tokens[start:]` is the scored span (1 <= start < len(tokens)).

    A span is always a suffix: a causal model's log-probabilities do not depend on what follows, so a span inside a
    text is the text cut behind it.
    """

    tokens: tuple[int, ...]
    start: int

    def __post_init__(self) -> None:
        assert 1 <= self.start < len(self.tokens), (self.start, len(self.tokens))


class PromptEncoder:
    """Turns samples of one task into token rows for one tokenizer.

    Args:
        tokenizer: a Hugging Face tokenizer; only plain tokenisation is asked of it, first tokens are put by us.
        task: the task whose prompts are rendered.
        max_length: the longest row in tokens, first tokens included (int >= 2).
        max_new_tokens: tokens that generation may append; generation prompts are cut to leave room for them.
        bos_token_id: the token every row starts with; None takes what the tokenizer itself puts first, if anything.
        embedding_rows: of the model; None where they are not known. A row with an id beyond them is a ValueError.
        refuse_lone_options: raise ValueError for an option that leaves no room for its prompt; False: score what is
            left of it, as the published runs did.
    """

    def __init__(
        self,
        tokenizer: Any,
        task: Task,
        *,
        max_length: int = 2048,
        max_new_tokens: int = 50,
        bos_token_id: int | None = None,
        embedding_rows: int | None = None,
        refuse_lone_options: bool = False,
    ):
        self.tokenizer, self.task, self.max_new_tokens = tokenizer, task, max_new_tokens
        self.tokenize = TextTokenizer(tokenizer, task, bos_token_id=bos_token_id)
        self.first = self.tokenize.first
        self.max_length = max_length - (max_new_tokens if task.generation else 0)
        if self.max_length < max(2, len(self.first) + 1):
            raise ValueError(
                f"max_length {max_length} leaves no room for a prompt"
                + (f" before max_new_tokens {max_new_tokens}" if task.generation else "")
                + ": raise --max_length"
            )
        self.refuse_lone_options = refuse_lone_options
        self.embedding_rows = embedding_rows
        self._check_ids(self.first, "every prompt begins with", "give another --bos_token_id")
        if embedding_rows is not None and max(tokenizer.get_vocab().values()) < embedding_rows:
            self.embedding_rows = None  # no text has an id that is beyond them
        self.remarks = self._remarks()

    def _remarks(self) -> Remarks:
        return Remarks(self.max_length, "right" if self.task.is_whole else "left")

    @contextmanager
    def noting(self, what: str = "rows") -> Iterator[Remarks]:
        """Around the encoding of a set of rows: what is to be said of them is logged behind it, once."""
        self.remarks = remarks = self._remarks()
        yield remarks
        for line in remarks.lines(what):
            logger.warning("%s", line)

    def candidates(
        self, sample: Sample, demonstrations: Sequence[Sample] = (), *, calibration: bool = False
    ) -> list[Row]:
        """One row per candidate, the candidate's tokens scored; `calibration` takes the content-free prompt (SFC).

        Where a token spans the end of the prompt and the start of a candidate, all candidates are scored from it on.
        """
        task, shown = self.task, self.tokenize.as_text(sample)
        assert shown.candidates is not None, "a generation sample has no candidates"
        prompt = task.prompt_sfc(shown) if calibration else task.prompt(shown)
        verbalize = task.verbalize_sfc if calibration else task.verbalize
        texts = [verbalize(shown, candidate) for candidate in shown.candidates]
        return self._rows(sample, demonstrations, prompt, texts, refuse=self.refuse_lone_options)

    def scored(self, sample: Sample) -> list[Row]:
        """The rows by which a sample is evaluated without demonstrations: its candidates', or the whole text's."""
        return self.whole(sample) if self.task.is_whole else self.candidates(sample)

    def whole(self, sample: Sample) -> list[Row]:
        """The rows of a text that is learned as it is: every token behind the first is scored.

        A text that is too long loses its end, or becomes several rows, as the task says.
        """
        assert self.task.text is not None
        text = self.task.text(self.tokenize.as_text(sample).data)
        self.remarks.kept_text(sample, [text])
        tokens = self.tokenize.starting(self.tokenize([text])[0])
        self._check_ids(tokens, "the text holds", "take it out of the text", f" (row {sample.id})")
        return self._pieces(sample, tokens)

    def _pieces(self, sample: Sample, tokens: tuple[int, ...]) -> list[Row]:
        """Rows of at most `max_length` tokens, each behind the first tokens."""
        first, size = self.first, self.max_length - len(self.first)
        behind, pieces = tokens[len(first) :], []
        for start in range(0, len(behind), size):
            piece = (*first, *behind[start : start + size])
            if len(piece) > max(1, len(first)):
                pieces.append(Row(piece, max(1, len(first))))
        if not pieces:
            raise ValueError(f"the text has no token that could be predicted: take the row out (row {sample.id})")
        kept = pieces if self.task.splits_long else pieces[:1]
        self.remarks.cut(sample, len(behind) - sum(len(row.tokens) - len(first) for row in kept))
        return kept

    def gold(self, sample: Sample, *, only_option: bool = True) -> Row:
        """The row that teacher forcing trains on: the correct option scored, or all tokens behind the first."""
        task, shown = self.task, self.tokenize.as_text(sample)
        texts = [task.verbalize(shown, task.gold(shown))]
        (row,) = self._rows(sample, (), task.prompt(shown), texts, refuse=self.refuse_lone_options and only_option)
        return row if only_option else Row(row.tokens, max(1, len(self.first)))

    def generation(self, sample: Sample, demonstrations: Sequence[Sample] = ()) -> tuple[int, ...]:
        """The token row of the prompt alone, to be continued by at most `max_new_tokens` tokens."""
        prompt = self.task.prompt(self.tokenize.as_text(sample)).strip(" ")
        text = self._shown(demonstrations)(prompt, prompt)
        self.remarks.kept_text(sample, [text])
        tokens = self.tokenize.starting(self.tokenize([text])[0])
        self._check_ids(tokens, "the text holds", "take it out of the text", f" (row {sample.id})")
        return self._cut(sample, tokens)

    def _shown(self, demonstrations: Sequence[Sample]) -> Callable[[str, str], str]:
        """How (a prompt, a text that begins with it) stand behind demonstrations: the text that is tokenised."""
        task, context = self.task, ""
        for shown in map(self.tokenize.as_text, demonstrations):
            context = _behind(self, context, task.verbalize(shown, task.gold(shown)).strip()) + task.separator
        return lambda prompt, text: _behind(self, context, text)

    def _rows(
        self, sample: Sample, demonstrations: Sequence[Sample], prompt: str, texts: list[str], *, refuse: bool
    ) -> list[Row]:
        # As the original: blanks around a text do not count, and the option's length is counted without demonstrations.
        prompt, texts = prompt.strip(" "), [text.strip(" ") for text in texts]
        show = self._shown(())
        shown = [show(prompt, text) for text in texts]
        prompt_ids, *full = self.tokenize([show(prompt, prompt), *shown])
        for text, ids in zip(texts, full, strict=True):
            if common_start(prompt_ids, ids) == len(ids):
                mend = "give it a text that is more than blanks, in characters that the tokenizer knows"
                raise ValueError(f"{ADDS_NONE}: {mend} (row {sample.id}: {text[-80:]!r})")
        options = self._options(sample, prompt_ids, full)
        if demonstrations:
            show = self._shown(demonstrations)
            shown = [show(prompt, text) for text in texts]
            alone, full = full, self.tokenize(shown)
            if any(ids[-n:] != own[-n:] for ids, own, n in zip(full, alone, options, strict=True)):
                prompt_ids = self.tokenize([show(prompt, prompt)])[0]
                options = self._options(sample, prompt_ids, full)
        self.remarks.kept_text(sample, shown)
        return [self._row(sample, ids, option, refuse) for ids, option in zip(full, options, strict=True)]

    def _options(self, sample: Sample, prompt: list[int], full: list[list[int]]) -> list[int]:
        """How many tokens of each text are scored: those behind what all share with the prompt alone."""
        shared = min(common_start(prompt, ids) for ids in full)
        if shared < len(prompt):
            self.remarks.spanning.add(id(sample))
        return [len(ids) - shared for ids in full]

    def _row(self, sample: Sample, ids: list[int], option: int, refuse: bool) -> Row:
        tokens = self.tokenize.starting(ids)
        if len(tokens) == option:  # nothing stands before the option: condition it on an empty text
            tokens = (self._empty_text_token(), *tokens)
        self._check_ids(tokens, "the text holds", "take it out of the text", f" (row {sample.id})")
        kept = self._cut(sample, tokens)
        if refuse and len(kept) < len(tokens) and len(kept) - option <= len(self.first):
            raise ValueError(
                f"an answer of {option} tokens leaves nothing of its prompt in {self.max_length} tokens: raise "
                f"--max_length, as far as the model has positions, or shorten the answer (row {sample.id})"
            )
        return Row(kept, max(1, len(self.first), len(kept) - option))

    def _empty_text_token(self) -> int:
        token = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        if token is None:
            raise ValueError(
                "nothing stands before the first token to score, and the tokenizer has no BOS or EOS token: "
                "give --bos_token_id"
            )
        return token

    def _cut(self, sample: Sample, tokens: tuple[int, ...]) -> tuple[int, ...]:
        lost = max(0, len(tokens) - self.max_length)
        self.remarks.cut(sample, lost)
        first = len(self.first)
        return (*tokens[:first], *tokens[first + lost :]) if lost else tokens

    def _check_ids(self, tokens: Sequence[int], who: str, mend: str, where: str = "") -> None:
        rows = self.embedding_rows
        outside = [] if rows is None else [token for token in tokens if not 0 <= token < rows]
        if outside:
            text = self.tokenizer.decode(outside[:1])
            raise ValueError(
                f"{who} the token {text!r} of id {outside[0]}, and the model's embedding has {rows} rows: {mend}, or "
                f"use the tokenizer that the model was trained with{where}"
            )


def _behind(encoder: PromptEncoder, context: str, text: str) -> str:
    return context + encoder.tokenize.following(text) if context else text


def common_start(a: Sequence[int], b: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
