"""Objectives without gradients: any metric of what the model writes or chooses (MeZO paper, section 3.3)."""

from __future__ import annotations

import importlib
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from justforward.registry import Registry, did_you_mean
from justforward.scoring import ScoringEngine
from justforward.scoring.finite import NotNumbersError, is_choice, numbers_only
from justforward.scoring.generation import Generator
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks.base import Sample, Task
from justforward.tasks.metrics import METRICS, Prediction, check_metric
from justforward.training.judges import Judge, is_judge
from justforward.training.objectives import OBJECTIVES, Batch, Example, Measured, ScoredObjective, option_scores

Reward = Callable[[Sequence[Sample], Sequence[Any]], Sequence[float]]
"""(samples, outputs) -> one number per sample, larger is better; an output is a generated text or a candidate."""

REWARDS: Registry[Reward] = Registry("reward", entry_points="justforward.rewards")
"""What plug-ins add; metrics are rewards by their own names."""


def find_reward(name: str | None, task: Task, **judging: Any) -> Reward:
    """The reward called `name`: a metric, a plug-in's, "module:function", a judge, or None for the task's own metric.

    judging: arguments of `Judge`, for a program ("command:PROGRAM") or an endpoint ("http://...").

    Raises ValueError for what cannot be found, and for a metric that does not fit the task's answers.
    """
    if name is not None and is_judge(name):
        return Judge(name, task, **judging)
    if name is not None and ":" in name:
        return _checked(name, _import(name))
    metrics, rewards = METRICS.names(), REWARDS.names()
    known = name or task.metric
    if known in metrics:
        return _of_metric(name, known, task)
    if known in rewards:
        return _checked(known, REWARDS.get(known))
    raise ValueError(
        f"--reward {known}: unknown metric or reward{did_you_mean(known, metrics + rewards)}; known: "
        f"{', '.join(metrics + rewards)}, or your own as MODULE:FUNCTION, command:PROGRAM or http://..."
    )


def _of_metric(given: str | None, name: str, task: Task) -> Reward:
    try:
        check_metric(name, generation=task.generation)
    except ValueError as error:
        raise ValueError(f"--reward {given}: {task.name}: {error}") from None
    metric = METRICS.get(name)

    def reward(samples: Sequence[Sample], outputs: Sequence[Any]) -> list[float]:
        return [metric([_prediction(task, s, o)]) for s, o in zip(samples, outputs, strict=True)]

    return reward


def _import(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--reward {name}: {error}") from error


def _checked(name: str, function: Any) -> Reward:
    """A user's or plug-in's function, held to one number per sample."""
    if not callable(function):
        raise ValueError(f"--reward {name}: {function!r} is not a function")
    own: Reward = function  # type: ignore[assignment]

    def reward(samples: Sequence[Sample], outputs: Sequence[Any]) -> list[float]:
        values = [float(v) for v in own(samples, outputs)]
        if len(values) != len(samples):
            raise ValueError(f"--reward {name}: gave {len(values)} numbers for {len(samples)} samples")
        return values

    return reward


def _prediction(task: Task, sample: Sample, output: Any) -> Prediction:
    predicted = output if sample.candidates is None else sample.candidates.index(output)
    return Prediction(predicted, task.target(sample))


@OBJECTIVES.register("reward")
class RewardObjective:
    """loss = - mean over samples of reward(sample, output).

    The output is the generated text (generation tasks) or the candidate with the highest score. Sampling draws the same
    random numbers at all probes of a batch, so that their difference is the weights' alone.

    guide: the loss of the right answers, where a training needs one beside the reward; completions: texts that are
    sampled for each prompt, whose mean reward is the sample's.
    """

    def __init__(
        self,
        reward: Reward,
        generator: Generator | None = None,
        guide: ScoredObjective | None = None,
        *,
        completions: int = 1,
    ):
        self.reward, self.generator, self.guide, self.completions = reward, generator, guide, completions

    def encode(self, encoder: PromptEncoder, sample: Sample) -> Example:
        """The prompt to continue, or all candidates' rows; and the guide's rows and label."""
        told = None if self.guide is None else self.guide.encode(encoder, sample)
        if encoder.task.generation:
            return Example(() if told is None else told.rows, 0, sample, encoder.generation(sample))
        label, summed = 0 if told is None else told.label, encoder.task.harness is not None
        return Example(tuple(encoder.candidates(sample)), label, sample, summed=summed)

    def batch(self, engine: ScoringEngine, examples: Sequence[Example]) -> Batch:
        """See Objective; the loss averages samples."""
        rows = [row for example in examples if not example.prompt for row in example.rows]
        return Batch(tuple(examples), engine.plan(rows), len(examples))

    def measure(self, engine: ScoringEngine, batch: Batch) -> Measured:
        """See the class."""
        samples = [e.sample for e in batch.examples if e.sample is not None for _ in range(self.completions)]
        try:
            rewards = self.reward(samples, self._outputs(engine, batch))
        except NotNumbersError:
            rewards = [math.nan]
        # A reward of +-inf or NaN is a step to be skipped, like a loss that is not finite.
        return Measured(torch.tensor(-math.fsum(rewards) / len(rewards) if rewards else math.nan))

    def _outputs(self, engine: ScoringEngine, batch: Batch) -> list[Any]:
        if batch.examples[0].prompt:
            assert self.generator is not None, "generated rewards need a generator"
            prompts = [e.prompt for e in batch.examples for _ in range(self.completions)]
            with torch.random.fork_rng():
                torch.manual_seed(zlib.crc32(repr(prompts).encode()))
                with numbers_only(self.generator.model):
                    return self.generator.generate(prompts)
        scores = option_scores(engine.run(batch.plan), batch.examples)
        if not all(is_choice(values.tolist()) for values in scores):
            raise NotNumbersError("the candidates' scores are not numbers")
        samples = [e.sample for e in batch.examples]
        return [s.candidates[int(v.argmax())] for s, v in zip(samples, scores, strict=True)]  # type: ignore[union-attr,index]
