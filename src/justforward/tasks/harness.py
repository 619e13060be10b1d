"""Tasks of another evaluation harness: what is asked and how answers are judged is that harness's, to the character."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from justforward.tasks.loading import Row

Judge = Callable[[Sequence[Row], Sequence[Any]], dict[str, float]]
"""(rows, answers) -> metrics by name; an answer is the candidates' summed log-probabilities, or the generated text."""


@dataclass(frozen=True, kw_only=True)
class Harness:
    """What a `Task` of a harness has beside the parts of our own tasks.

    Texts are joined as they are, blanks and all: description, demonstrations, context, continuation. Candidates are
    compared by the sum of their tokens' log-probabilities.
    """

    description: Callable[[Row], str]
    """Stands once, before everything."""
    shown: Callable[[Row], str]
    """A row as a demonstration, with what separates it from the next."""
    context: Callable[[Row, Any], str]
    """What stands before that which is scored of a candidate, or generated."""
    continuation: Callable[[Row, Any], str]
    """What is scored of a candidate, or learned of an answer."""
    judge: Judge
    metrics: tuple[str, ...]
    """What `judge` gives, by the harness's names."""
    ends: tuple[str, ...] = ()
    """Texts before which a generated answer ends."""
    most_tokens: int = 0
    """Of a generated answer."""
