"""Linear probing: logistic regression on the last hidden states, written into the language-model head.

For every token of the right options, the hidden state that predicts it is a feature vector and the token is its class
(Malladi et al. 2023, linear probing). The head's rows of the classes become the regression's coefficients; all other
rows stay.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from torch import nn

from justforward.models.tuning import untie
from justforward.scoring import ScoringEngine
from justforward.scoring.finite import NotNumbersError, likely_cause
from justforward.scoring.prompts import Row

logger = logging.getLogger(__name__)

FOLDS = 5
"""Parts of the training tokens among which the strength of the penalty is cross-validated."""


@dataclass(frozen=True)
class Probe:
    """A fitted regression.

    tokens: [K] int64, the classes; coefficients: [K, H] float64, one row of the head for each; penalty: the inverse
    strength C of the L2 penalty that was chosen; accuracy: share of training tokens that the regression gets right.
    """

    tokens: np.ndarray
    coefficients: np.ndarray
    penalty: float
    accuracy: float


def linear_probe(engine: ScoringEngine, rows: Sequence[Row], *, early_stopping: bool = False) -> Probe:
    """Fit a regression to the scored tokens of `rows` and write it into the engine's model, whose head is untied.

    Raises ValueError where the rows have fewer than two different tokens, or too few of each, and where features are
    not numbers.
    """
    if untie(cast(Any, engine.model)):
        logger.info("the head shares the input embedding's weights: it gets a copy, so that only the head is changed")
    features, targets = head_inputs(engine, rows)
    if bad := int((~np.isfinite(features).all(axis=1)).sum()):
        raise NotNumbersError(
            f"--linear_probing: the features of {bad} of {len(features)} tokens are not numbers: "
            f"{likely_cause(engine.model)}"
        )
    logger.info(
        "linear probing: %d tokens of %d kinds, %d features", *(len(targets), len(np.unique(targets))), len(features[0])
    )
    probe = fit(features, targets, early_stopping=early_stopping)
    logger.info("linear probing: C %.4g, %.1f %% of the training tokens right", probe.penalty, 100 * probe.accuracy)
    write(engine.model, probe)
    return probe


@torch.no_grad()
def head_inputs(engine: ScoringEngine, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """[T, H] float32 inputs of the head that predict the T scored tokens, and [T] int64 those tokens, row by row."""
    plan = engine.plan(rows)
    seen: list[torch.Tensor] = []
    engine.model.eval()
    hook = _head(engine.model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        engine.run(plan)
    finally:
        hook.remove()
    features, targets, order = [], [], []
    # A shared prefix goes through the head too, before the rest.
    for forward, states in zip(plan.forwards, seen[-len(plan.forwards) :], strict=True):
        kept = states.reshape(-1, states.shape[-1])
        if not engine.keeps_logits:
            kept = kept[torch.from_numpy(forward.keep).reshape(-1)]
        features.append(kept.numpy()[forward.source])
        targets.append(forward.target)
        order.append(forward.output)
    back = np.argsort(np.concatenate(order))
    return np.concatenate(features)[back], np.concatenate(targets)[back]


def fit(features: np.ndarray, targets: np.ndarray, *, early_stopping: bool = False) -> Probe:
    """Multinomial logistic regression without intercept; the penalty is cross-validated by accuracy on a grid of ten.

    Tolerance 1e-4 and 5,000 iterations; 0.01 and 1,000 with `early_stopping`.
    """
    counts = np.unique(targets, return_counts=True)[1]
    if len(counts) < 2 or counts.max() < 2:
        raise ValueError(
            f"--linear_probing has {len(counts)} kinds of tokens to tell apart, and at most {counts.max()} of a kind: "
            "raise --num_train"
        )
    # scikit-learn's defaults are not of its arguments' types, which type checkers infer from them.
    regression: Any = cast(Any, LogisticRegressionCV)(
        fit_intercept=False,
        cv=min(FOLDS, int(counts.max())),
        tol=0.01 if early_stopping else 1e-4,
        max_iter=1000 if early_stopping else 5000,
        random_state=0,
        scoring="accuracy",
        l1_ratios=(0,),
        use_legacy_attributes=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        regression.fit(features, targets)
    for text in dict.fromkeys(str(w.message).split("\n")[0] for w in caught):
        logger.warning("linear probing: %s", text)
    coefficients = regression.coef_
    if len(coefficients) == 1:  # two classes: one row that tells the second from the first
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
    accuracy = float(np.mean(regression.predict(features) == targets))
    return Probe(regression.classes_, coefficients, float(regression.C_), accuracy)


@torch.no_grad()
def write(model: nn.Module, probe: Probe) -> None:
    """Put the coefficients into the head's rows of the classes, in the head's dtype; a bias of theirs becomes 0."""
    head = _head(model)
    rows = torch.from_numpy(probe.tokens).to(head.weight.device)
    head.weight[rows] = torch.from_numpy(probe.coefficients).to(head.weight)
    if head.bias is not None:
        head.bias[rows] = 0


def _head(model: nn.Module) -> nn.Linear:
    head = cast(Any, model).get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"--linear_probing: {type(model).__name__} has no language-model head of plain weights")
    return head
