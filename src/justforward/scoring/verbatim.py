"""Token rows of a harness's tasks: context and continuation to the character, divided as lm_eval divides them.

What the context has at its end of white space counts to the continuation. Both are tokenised as one text, and the
continuation is what exceeds the number of tokens of the context alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from justforward.scoring.prompts import ADDS_NONE, PromptEncoder, Row
from justforward.tasks.harness import Harness

if TYPE_CHECKING:
    from justforward.tasks.base import Sample, Task


class VerbatimEncoder(PromptEncoder):
    """A PromptEncoder that leaves every blank of a harness's texts; arguments as there."""

    def __init__(self, tokenizer: Any, task: Task, **settings: Any):
        assert task.harness is not None
        super().__init__(tokenizer, task, **settings)
        self.harness: Harness = task.harness

    def candidates(
        self, sample: Sample, demonstrations: Sequence[Sample] = (), *, calibration: bool = False
    ) -> list[Row]:
        """One row per candidate, as there; `calibration` leaves the sample's own context out."""
        assert sample.candidates is not None, "a generation sample has no candidates"
        return [self._pair(sample, c, demonstrations, calibration=calibration) for c in sample.candidates]

    def gold(self, sample: Sample, *, only_option: bool = True) -> Row:
        """The row that teacher forcing trains on, as there."""
        row = self._pair(sample, self.task.gold(sample))
        return row if only_option else Row(row.tokens, max(1, len(self.first)))

    def generation(self, sample: Sample, demonstrations: Sequence[Sample] = ()) -> tuple[int, ...]:
        """The token row of the context, to be continued."""
        return self._cut(sample, self._starting(sample, self._before(sample, None, demonstrations)))

    def _before(self, sample: Sample, candidate: Any, demonstrations: Sequence[Sample]) -> str:
        shown = "".join(self.harness.shown(demonstration.data) for demonstration in demonstrations)
        return self.harness.description(sample.data) + shown + self.harness.context(sample.data, candidate)

    def _pair(
        self, sample: Sample, candidate: Any, demonstrations: Sequence[Sample] = (), *, calibration: bool = False
    ) -> Row:
        before = self._before(sample, candidate, demonstrations)
        if calibration:
            own = len(self.harness.context(sample.data, candidate))
            before = before[: len(before) - own] if demonstrations else ""
        text = before + self.harness.continuation(sample.data, candidate)
        context, whole = self.tokenize([before.rstrip(), text])
        if len(whole) <= len(context):
            raise ValueError(f"{ADDS_NONE}: give it another text (row {sample.id}: {text[-80:]!r})")
        return self._row(sample, whole, len(whole) - len(context), self.refuse_lone_options)

    def _starting(self, sample: Sample, text: str) -> tuple[int, ...]:
        tokens = self.tokenize.starting(self.tokenize([text])[0])
        self._check_ids(tokens, "the text holds", "take it out of the text", f" (row {sample.id})")
        return tokens
