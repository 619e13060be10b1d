"""Training objectives: (engine, batch of examples) -> a scalar loss, differentiable when gradients are on.

An objective encodes a sample into an `Example` once, before training. At a step the batch is planned once
(`Batch`), and evaluated as often as the optimiser wants.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from justforward.optim.directions.base import Owners
from justforward.registry import Registry
from justforward.scoring import Plan, Scores, ScoringEngine
from justforward.scoring.positions import sent
from justforward.scoring.prompts import PromptEncoder, Row
from justforward.tasks.base import Sample


@dataclass(frozen=True)
class Example:
    """One encoded training sample: its token rows, and which of them is right.

    `sample` and `prompt` (the token row to continue) are there for objectives that reward outputs. `summed`: rows are
    compared by their sums, as the evaluation of a harness's task does, and not by their means.
    """

    rows: tuple[Row, ...]
    label: int
    sample: Sample | None = None
    prompt: tuple[int, ...] = ()
    summed: bool = False


def rows_fingerprint(examples: Sequence[Example]) -> str:
    """What tells training rows from others."""
    digest = hashlib.sha256()
    for example in examples:
        told = [[list(row.tokens), row.start] for row in example.rows], example.label, list(example.prompt)
        digest.update(json.dumps(told).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Batch:
    """Examples with the plan that scores all their rows.

    weight: the number of items the loss averages; normalise: False where logits do in place of log-probabilities;
    owners: the direction that each example probes, where a step's directions divide the batch.
    """

    examples: tuple[Example, ...]
    plan: Plan
    weight: int
    normalise: bool = True
    owners: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Measured:
    """loss: [] float32; losses: [B] float32 and correct: [B] bool, or None where nothing is chosen.

    An example whose loss is not finite is not correct.
    """

    loss: Tensor
    correct: Tensor | None = None
    losses: Tensor | None = None


def option_scores(scores: Scores, examples: Sequence[Example]) -> tuple[Tensor, ...]:
    """What the options of each example are compared by."""
    values = scores.sums() if examples[0].summed else scores.means()
    return values.split([len(e.rows) for e in examples])


class Objective(Protocol):
    """What training minimises."""

    def encode(self, encoder: PromptEncoder, sample: Sample) -> Example:
        """Token rows of one sample. Raises ValueError for a sample this objective cannot train on."""
        ...

    def batch(self, engine: ScoringEngine, examples: Sequence[Example]) -> Batch:
        """Plan the forward passes of a batch."""
        ...

    def measure(self, engine: ScoringEngine, batch: Batch) -> Measured:
        """The batch's mean loss, and which of its examples are right where that can be told from the scores."""
        ...


class ScoredObjective(ABC):
    """An objective that is a function of the rows' scores."""

    @abstractmethod
    def encode(self, encoder: PromptEncoder, sample: Sample) -> Example:
        """See Objective."""

    @abstractmethod
    def batch(self, engine: ScoringEngine, examples: Sequence[Example], owners: tuple[int, ...] | None = None) -> Batch:
        """See Objective; owners: the direction that each example probes, where they differ."""

    @abstractmethod
    def evaluate(self, scores: Scores, batch: Batch) -> Measured:
        """The loss, and what is right, from the scores of the batch's rows."""

    def measure(self, engine: ScoringEngine, batch: Batch) -> Measured:
        """See Objective."""
        return self.evaluate(engine.run(batch.plan, normalise=batch.normalise), batch)

    def measure_pair(self, engine: ScoringEngine, batch: Batch) -> Tensor:
        """[2] losses, of the two halves of the doubled batch, in one pass."""
        return self.measure_copies(engine, batch, 2, None)

    def measure_copies(self, engine: ScoringEngine, batch: Batch, copies: int, owners: Owners | None) -> Tensor:
        """[copies] losses, of as many copies of the batch, in one pass; owners: told whose each row is."""
        every = engine.run_copies(batch.plan, copies, normalise=batch.normalise, owners=owners)
        return torch.stack([self.evaluate(scores, batch).loss for scores in every])

    @abstractmethod
    def sums(self, scores: Scores, batch: Batch) -> Tensor:
        """[B] float32: the part of each example in the sum that the loss is the mean of."""

    def measure_shares(self, engine: ScoringEngine, batch: Batch, count: int, owners: Owners) -> Tensor:
        """[count] float32: each direction's share of the loss, times their number; see `Shares.together`."""
        sums = self.sums(engine.run(batch.plan, normalise=batch.normalise, owners=owners), batch)
        owner = sent(torch.tensor(batch.owners), sums.device)
        return sums.new_zeros(count).index_add(0, owner, sums) * (count / batch.weight)


OBJECTIVES: Registry[type] = Registry("objective", entry_points="justforward.objectives")


@OBJECTIVES.register("classification")
class Classification(ScoredObjective):
    """Cross-entropy over the candidates' length-normalised log-probabilities (MeZO paper, appendix E.4).

    loss = mean over examples of  -s[label] + log sum_k exp s[k],  s[k] = mean over tokens of log p(candidate k), or
    their sum where the evaluation compares sums.
    """

    def encode(self, encoder: PromptEncoder, sample: Sample) -> Example:
        """All candidates' rows; the label is the index of the gold candidate."""
        label = encoder.task.gold_index(sample)
        return Example(tuple(encoder.candidates(sample)), label, summed=encoder.task.harness is not None)

    def batch(self, engine: ScoringEngine, examples: Sequence[Example], owners: tuple[int, ...] | None = None) -> Batch:
        """See Objective; the loss averages examples.

        Where the candidates of an example are one token each after one prompt, the sum over the vocabulary is the same
        in all its scores and cancels in the loss: the head is run for the candidates' tokens alone.
        """
        if wrong := next((e for e in examples if not 0 <= e.label < len(e.rows)), None):
            raise ValueError(f"an example's label is {wrong.label} of {len(wrong.rows)} candidates: they count from 0")
        whose = None if owners is None else [owner for owner, e in zip(owners, examples, strict=True) for _ in e.rows]
        plan = engine.plan([r for e in examples for r in e.rows], whose)
        cancels = all(
            r.start == len(r.tokens) - 1 and r.tokens[:-1] == e.rows[0].tokens[:-1] for e in examples for r in e.rows
        )
        return Batch(tuple(examples), plan, len(examples), normalise=not cancels, owners=owners)

    def evaluate(self, scores: Scores, batch: Batch) -> Measured:
        """See the class; an example is right when its label has the highest score."""
        table, labels = self._table(scores, batch)
        losses = _cross_entropy(table, labels)
        return Measured(losses.mean(), (table.argmax(1) == labels) & losses.isfinite(), losses)

    def sums(self, scores: Scores, batch: Batch) -> Tensor:
        """See ScoredObjective: the examples' losses."""
        return _cross_entropy(*self._table(scores, batch))

    def _table(self, scores: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, K] scores, -inf where an example has fewer candidates, and [B] labels."""
        table = pad_sequence(list(option_scores(scores, batch.examples)), batch_first=True, padding_value=-math.inf)
        return table, sent(torch.tensor([e.label for e in batch.examples]), table.device)


def _cross_entropy(table: Tensor, labels: Tensor) -> Tensor:
    return torch.logsumexp(table, 1) - table.gather(1, labels[:, None])[:, 0]


@OBJECTIVES.register("teacher_forcing")
class TeacherForcing(ScoredObjective):
    """Mean negative log-probability of the gold option's tokens, over all tokens of the batch.

    only_option: False scores the prompt's tokens too (language modelling of the whole text).
    """

    def __init__(self, *, only_option: bool = True):
        self.only_option = only_option

    def encode(self, encoder: PromptEncoder, sample: Sample) -> Example:
        """The gold option's row alone; all rows of a text that is learned whole."""
        if encoder.task.is_whole:
            return Example(tuple(encoder.whole(sample)), 0)
        return Example((encoder.gold(sample, only_option=self.only_option),), 0)

    def batch(self, engine: ScoringEngine, examples: Sequence[Example], owners: tuple[int, ...] | None = None) -> Batch:
        """See Objective; the loss averages tokens."""
        whose = None if owners is None else [owner for owner, e in zip(owners, examples, strict=True) for _ in e.rows]
        plan = engine.plan([row for e in examples for row in e.rows], whose)
        return Batch(tuple(examples), plan, int(plan.lengths.sum()), owners=owners)

    def evaluate(self, scores: Scores, batch: Batch) -> Measured:
        """See the class."""
        return Measured(-scores.token_logprobs.mean())

    def sums(self, scores: Scores, batch: Batch) -> Tensor:
        """See ScoredObjective: of the tokens' negative log-probabilities."""
        return torch.stack([-part.sum() for part in scores.sums().split([len(e.rows) for e in batch.examples])])
