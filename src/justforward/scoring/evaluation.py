"""Predictions and metrics: zero-shot, in-context learning (ICL), calibration, generation."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from justforward.scoring import ScoringEngine
from justforward.scoring.chat import ChatEncoder
from justforward.scoring.finite import NotNumbersError, is_choice, likely_cause, numbers_only
from justforward.scoring.generation import Generator
from justforward.scoring.prompts import PromptEncoder, Row
from justforward.tasks.base import Sample
from justforward.tasks.metrics import METRICS, Prediction

logger = logging.getLogger(__name__)

ALWAYS_SHOWN = 3
"""So many samples are logged with prompt, scores and prediction even when not verbose."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of one sample; one line of the predictions file.

    scores: one per candidate, the mean log-probability (of a harness's task the sum; with calibration the difference of
    the sums), or None for generation; predicted: the candidate or the generated text; correct: what was accepted; cut:
    so many of its tokens did not fit; tokens: of a text that is learned whole, how many were scored.
    """

    id: Any
    candidates: tuple | None
    scores: tuple[float, ...] | None
    predicted: Any
    correct: Any
    cut: int = 0
    tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields, for JSON; `cut` and `tokens` only where there are any."""
        return {name: value for name, value in asdict(self).items() if name not in ("cut", "tokens") or value}


class Evaluator:
    """Evaluates one model on samples of one task.

    Args:
        encoder: renders prompts (it holds the task).
        engine: scores candidates.
        generator: continues prompts; needed by generation tasks only.
        calibration: surface-form competition (Holtzman et al. 2021): subtract the candidate's log-probability after
            a content-free prompt, "sfc" without and "icl_sfc" with the demonstrations.
        verbose: log every sample, not only the first three.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        engine: ScoringEngine,
        generator: Generator | None = None,
        *,
        calibration: Literal["sfc", "icl_sfc"] | None = None,
        verbose: bool = False,
    ):
        self.encoder, self.engine, self.generator = encoder, engine, generator
        self.task = encoder.task
        self.calibration = calibration
        self.verbose = verbose

    @torch.no_grad()
    def evaluate(
        self,
        samples: Sequence[Sample],
        demonstrations: Sequence[Sequence[Sample]] | None = None,
        progress: Progress | None = None,
    ) -> list[Outcome]:
        """One outcome per sample, in order.

        Raises ValueError for a sample that cannot be encoded, and where scores, or logits, are not numbers.

        Args:
            samples: what to predict.
            demonstrations: for each sample the demonstrations before it; None for zero-shot.
            progress: told the number of samples (a float's worth, rounded) each forward pass finished.
        """
        shots = demonstrations if demonstrations is not None else [()] * len(samples)
        assert len(shots) == len(samples)
        self.engine.model.eval()
        way = self._whole if self.task.is_whole else self._generate if self.task.generation else self._choose
        outcomes = way(samples, shots, progress)
        for i, (sample, outcome) in enumerate(zip(samples, outcomes, strict=True)):
            if self.verbose or i < ALWAYS_SHOWN:
                self._show(i, sample, shots[i], outcome)
        self._check(samples, outcomes)
        return outcomes

    def _check(self, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> None:
        """No outcome may be a choice among scores that are not numbers."""
        bad = [pair for pair in zip(samples, outcomes, strict=True) if pair[1].scores and not is_choice(pair[1].scores)]
        if not bad:
            return
        sample, first = bad[0]
        assert first.scores is not None
        if self.task.is_whole:
            raise NotNumbersError(
                f"{len(bad)} of {len(outcomes)} texts have losses that are not numbers (id {sample.id}), and no result "
                f"is written: {likely_cause(self.engine.model)}"
            )
        score, candidate = next(
            pair for pair in zip(first.scores, sample.candidates or (), strict=True) if not math.isfinite(pair[0])
        )
        option = self.task.verbalize(sample, candidate)[len(self.task.prompt(sample)) :][-80:]
        raise NotNumbersError(
            f"{len(bad)} of {len(outcomes)} samples have scores that are not numbers (id {sample.id}: {score} for "
            f"{option!r}), and no result is written: {likely_cause(self.engine.model)}"
        )

    def metrics(self, samples: Sequence[Sample], outcomes: Sequence[Outcome]) -> dict[str, float]:
        """The task's metric of these outcomes by name, and exact match (em) beside it for generated answers.

        Of a harness's task: that harness's metrics. Of texts that are learned whole: the mean negative log-probability
        of all tokens, and its exponential; and the metric of the last answers, where the task names one.
        """
        if self.task.is_whole:
            total = math.fsum(o.scores[0] * o.tokens for o in outcomes if o.scores)
            loss = -total / max(1, sum(o.tokens for o in outcomes))
            found = {"loss": loss, "perplexity": math.exp(min(loss, 700))}
            if not self.task.generates:
                return found
            answers = [Prediction(o.predicted, o.correct) for o in outcomes]
            return found | {name: METRICS.get(name)(answers) for name in dict.fromkeys([self.task.metric, "em"])}
        if self.task.harness is not None:
            answers = [o.predicted if o.scores is None else o.scores for o in outcomes]
            return self.task.harness.judge([sample.data for sample in samples], answers)
        predictions = [self._prediction(s, o) for s, o in zip(samples, outcomes, strict=True)]
        names = dict.fromkeys([self.task.metric, "em"] if self.task.generation else [self.task.metric])
        return {name: METRICS.get(name)(predictions) for name in names}

    def _prediction(self, sample: Sample, outcome: Outcome) -> Prediction:
        predicted = outcome.predicted if sample.candidates is None else sample.candidates.index(outcome.predicted)
        return Prediction(predicted, self.task.target(sample))

    def _generate(
        self, samples: Sequence[Sample], shots: Sequence[Sequence[Sample]], progress: Progress | None
    ) -> list[Outcome]:
        assert self.generator is not None, "a generation task needs a generator"
        with self.encoder.noting() as remarks:
            prompts = [self.encoder.generation(s, d) for s, d in zip(samples, shots, strict=True)]
        with numbers_only(self.generator.model):
            texts = self.generator.generate(prompts, progress)
        return [
            Outcome(s.id, None, None, text, s.correct, remarks.tokens_lost(s))
            for s, text in zip(samples, texts, strict=True)
        ]

    def _choose(
        self, samples: Sequence[Sample], shots: Sequence[Sequence[Sample]], progress: Progress | None
    ) -> list[Outcome]:
        rows: list[list[Row]] = []
        calibration: list[list[Row]] = []
        with self.encoder.noting() as remarks:
            for sample, demos in zip(samples, shots, strict=True):
                rows.append(self.encoder.candidates(sample, demos))
                if self.calibration:
                    context = demos if self.calibration == "icl_sfc" else ()
                    calibration.append(self.encoder.candidates(sample, context, calibration=True))
        flat = [row for group in rows for row in group]
        plain = self.engine.score(flat, _in_samples(progress, flat, len(samples)))
        if self.calibration:
            values = plain.sums() - self.engine.score([row for group in calibration for row in group]).sums()
        else:
            values = plain.means() if self.task.harness is None else plain.sums()
        outcomes = []
        for sample, scores in zip(samples, values.cpu().split([len(group) for group in rows]), strict=True):
            assert sample.candidates is not None
            best, options, cut = int(scores.argmax()), sample.candidates, remarks.tokens_lost(sample)
            outcomes.append(Outcome(sample.id, options, tuple(scores.tolist()), options[best], sample.correct, cut))
        return outcomes

    def _whole(
        self, samples: Sequence[Sample], shots: Sequence[Sequence[Sample]], progress: Progress | None
    ) -> list[Outcome]:
        with self.encoder.noting() as remarks:
            rows = [self.encoder.whole(sample) for sample in samples]
        flat = [row for group in rows for row in group]
        sums = self.engine.score(flat, _in_samples(progress, flat, len(samples))).sums().cpu().double()
        outcomes, answers = [], self._last_answers(samples)
        for sample, group, parts in zip(samples, rows, sums.split([len(group) for group in rows]), strict=True):
            tokens = sum(len(row.tokens) - row.start for row in group)
            mean = (float(parts.sum()) / tokens,)
            text, correct = next(answers, (None, None))
            outcomes.append(Outcome(sample.id, None, mean, text, correct, remarks.tokens_lost(sample), tokens))
        return outcomes

    def _last_answers(self, samples: Sequence[Sample]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """What is generated in each conversation's last turn, and what stands there."""
        if not self.task.generates:
            return iter(())
        assert self.generator is not None
        assert isinstance(self.encoder, ChatEncoder)
        asked = [self.encoder.last_answer(sample) for sample in samples]
        with numbers_only(self.generator.model):
            texts = self.generator.generate([prompt for prompt, _ in asked])
        return iter([(text, (answer,)) for text, (_, answer) in zip(texts, asked, strict=True)])

    def _show(self, i: int, sample: Sample, demos: Sequence[Sample], outcome: Outcome) -> None:
        logger.info("sample %d (id %s), %d demonstrations", i, sample.id, len(demos))
        if self.task.is_whole:
            assert outcome.scores is not None
            logger.info("  %d tokens scored, mean log-probability %.4f", outcome.tokens, outcome.scores[0])
            if outcome.predicted is not None:
                logger.info("  predicted: %r   correct: %r", outcome.predicted, outcome.correct[0])
            return
        prompt = self.task.prompt(sample)
        logger.info("  prompt: %r", prompt)
        if outcome.scores is not None:
            for candidate, score in zip(outcome.candidates or (), outcome.scores, strict=True):
                logger.info("  %9.4f  %r", score, self.task.verbalize(sample, candidate)[len(prompt) :])
        logger.info("  predicted: %s   correct: %s", outcome.predicted, outcome.correct)


def _in_samples(progress: Progress | None, rows: list[Row], samples: int) -> Progress | None:
    """Translate scored tokens into finished samples."""
    if progress is None:
        return None
    tokens = sum(len(r.tokens) - r.start for r in rows)
    done, told = 0, 0

    def tell(scored: int) -> None:
        nonlocal done, told
        done += scored
        now = done * samples // tokens
        progress(now - told)
        told = now

    return tell
