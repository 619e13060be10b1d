"""A sample and its demonstrations -> token rows with the span to score (BOS, truncation, option lengths).

Reproduces the token rows of Malladi et al. (2023): the whole text is tokenised at once, an option's length is the
difference of two token counts, and rows that are too long lose tokens from the left, keeping BOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from justforward.tasks.base import Sample, Task


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
        tokenizer: a Hugging Face tokenizer; only plain tokenisation is asked of it, special tokens are ours.
        task: the task whose prompts are rendered.
        max_length: the longest row in tokens, BOS included (int >= 2).
        max_new_tokens: tokens that generation may append; generation prompts are cut to leave room for them.
        bos_token_id: the token every row starts with; None takes what the tokenizer itself puts first, if anything.
    """

    def __init__(
        self,
        tokenizer: Any,
        task: Task,
        *,
        max_length: int = 2048,
        max_new_tokens: int = 50,
        bos_token_id: int | None = None,
    ):
        self.tokenizer = tokenizer
        self.task = task
        self.max_length = max_length - (max_new_tokens if task.generation else 0)
        if self.max_length < 2:
            raise ValueError(
                f"max_length {max_length} leaves no room for a prompt"
                + (f" before max_new_tokens {max_new_tokens}" if task.generation else "")
                + ": raise --max_length"
            )
        special = tokenizer("")["input_ids"]
        self.bos = bos_token_id if bos_token_id is not None else (special[0] if special else None)

    def candidates(
        self, sample: Sample, demonstrations: Sequence[Sample] = (), *, calibration: bool = False
    ) -> list[Row]:
        """One row per candidate, the candidate's tokens scored; `calibration` takes the content-free prompt (SFC)."""
        assert sample.candidates is not None, "a generation sample has no candidates"
        task = self.task
        prompt = task.prompt_sfc(sample) if calibration else task.prompt(sample)
        verbalize = task.verbalize_sfc if calibration else task.verbalize
        return self._rows(demonstrations, prompt, [verbalize(sample, c) for c in sample.candidates])

    def gold(self, sample: Sample, *, only_option: bool = True) -> Row:
        """The row that teacher forcing trains on: the correct option scored, or all tokens behind the first."""
        text = self.task.verbalize(sample, self.task.gold(sample))
        row = self._rows((), self.task.prompt(sample), [text])[0]
        return row if only_option else Row(row.tokens, 1)

    def generation(self, sample: Sample, demonstrations: Sequence[Sample] = ()) -> tuple[int, ...]:
        """The token row of the prompt alone, to be continued by at most `max_new_tokens` tokens."""
        text = self._context(demonstrations) + self.task.prompt(sample).strip(" ")
        return self._cut(self._with_bos(self._tokenize([text])[0]))

    def _context(self, demonstrations: Sequence[Sample]) -> str:
        task = self.task
        return "".join(task.verbalize(d, task.gold(d)).strip() + task.separator for d in demonstrations)

    def _rows(self, demonstrations: Sequence[Sample], prompt: str, texts: list[str]) -> list[Row]:
        # As the original: blanks around a text do not count, and the option's length is counted without demonstrations.
        context = self._context(demonstrations)
        prompt, texts = prompt.strip(" "), [text.strip(" ") for text in texts]
        prompt_ids, *plain = self._tokenize([prompt, *texts])
        full = self._tokenize([context + text for text in texts]) if context else plain
        rows = []
        for text, with_context, alone in zip(texts, full, plain, strict=True):
            option = len(alone) - len(prompt_ids)
            if option < 1:
                raise ValueError(f"a candidate adds no tokens to its prompt, so it has no probability: {text[-80:]!r}")
            tokens = self._with_bos(with_context)
            if len(tokens) == option:  # nothing stands before the option: condition it on an empty text
                tokens = (self._empty_text_token(), *tokens)
            tokens = self._cut(tokens)
            rows.append(Row(tokens, max(1, len(tokens) - option)))
        return rows

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _with_bos(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids) if self.bos is None else (self.bos, *ids)

    def _empty_text_token(self) -> int:
        token = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        if token is None:
            raise ValueError("the prompt is empty and the tokenizer has no BOS or EOS token: give --bos_token_id")
        return token

    def _cut(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if len(tokens) <= self.max_length:
            return tokens
        if self.bos is None:
            return tokens[-self.max_length :]
        return (tokens[0], *tokens[1 - self.max_length :])
