"""Metrics: predictions -> one number between 0 and 1.

Text answers are compared as SQuAD does (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250): in lower case,
without ASCII punctuation and articles, white space collapsed.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from justforward.registry import Registry

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

# A first accepted answer that says that there is none: F1 is then all or nothing.
_UNANSWERABLE = ("CANNOTANSWER", "no answer")


@dataclass(frozen=True)
class Prediction:
    """What was predicted, and what is right.

    For a choice: the index of a candidate, and the right index or a tuple of all accepted ones. For generated text: the
    text, and a tuple of all accepted texts.
    """

    predicted: Any
    correct: Any


Metric = Callable[[Sequence[Prediction]], float]
METRICS: Registry[Metric] = Registry("metric", entry_points="justforward.metrics")


# Metrics of the one kind of answers or the other; a plug-in's are taken to know what they are for.
_OF_TEXTS, _OF_CHOICES = ("f1", "em"), ("accuracy",)


def check_metric(name: str, *, generation: bool) -> None:
    """Raise ValueError for a metric that is unknown, or not for answers that are generated (or else chosen)."""
    METRICS.get(name)
    if name in (_OF_CHOICES if generation else _OF_TEXTS):
        what, usable = ("generated text", "f1 or em") if generation else ("a chosen option", "accuracy")
        raise ValueError(f"{name} is no metric of {what}; use {usable}")


def normalize(text: str) -> str:
    """`text` in the form in which answers are compared."""
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def f1(predicted: str, golds: Sequence[str]) -> float:
    """Token F1 of `predicted` against the accepted answer that it fits best.

    An answer without tokens scores 0, even against another one without ("the" against "a"). Where the first of `golds`
    says that there is no answer ("no answer", "CANNOTANSWER"), that one alone counts, all or nothing.
    """
    assert not isinstance(golds, str), "golds is a sequence of texts"
    if golds[0] in _UNANSWERABLE:
        return float(normalize(predicted) == normalize(golds[0]))
    return max(_token_f1(normalize(predicted).split(), normalize(gold).split()) for gold in golds)


def exact_match(predicted: str, golds: Sequence[str]) -> float:
    """1.0 where `predicted` equals any of the accepted answers after normalisation, else 0.0."""
    assert not isinstance(golds, str), "golds is a sequence of texts"
    return float(normalize(predicted) in {normalize(gold) for gold in golds})


@METRICS.register("accuracy")
def accuracy(predictions: Sequence[Prediction]) -> float:
    """Share of predictions that are (one of) the right ones."""
    return _mean([float(p.predicted in _accepted(p.correct)) for p in predictions])


@METRICS.register("f1")
def mean_f1(predictions: Sequence[Prediction]) -> float:
    """Mean of `f1` over generated texts."""
    return _mean([f1(p.predicted, p.correct) for p in predictions])


@METRICS.register("em")
def mean_exact_match(predictions: Sequence[Prediction]) -> float:
    """Mean of `exact_match` over generated texts."""
    return _mean([exact_match(p.predicted, p.correct) for p in predictions])


def _token_f1(predicted: list[str], gold: list[str]) -> float:
    common = (Counter(predicted) & Counter(gold)).total()
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _accepted(correct: Any) -> tuple[Any, ...]:
    return correct if isinstance(correct, tuple) else (correct,)


def _mean(values: list[float]) -> float:
    if not values:
        raise ValueError("no predictions to score: the evaluation set is empty")
    return float(np.mean(values))
