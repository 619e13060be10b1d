"""Tasks of another evaluation harness: what is asked and how answers are judged is that harness's, to the character."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from justforward.tasks.loading import Row

T = TypeVar("T")

JudgeAnswers = Callable[[Sequence[Row], Sequence[Any]], dict[str, float]]
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
    judge: JudgeAnswers
    fingerprint: Callable[[], str]
    """A short name for all that a training takes from the task."""
    metrics: tuple[str, ...]
    """What `judge` gives, by the harness's names."""
    ends: tuple[str, ...] = ()
    """Texts before which a generated answer ends."""
    most_tokens: int = 0
    """Of a generated answer."""


class Made(Sequence[T], Generic[T]):
    """A sequence whose entries are made when they are asked for, once: a harness renders some hundred rows a second."""

    def __init__(self, size: int, make: Callable[[int], T]):
        self.size, self.make = size, make
        self.made: dict[int, T] = {}

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        place = range(self.size)[index]
        if place not in self.made:
            self.made[place] = self.make(place)
        return self.made[place]
