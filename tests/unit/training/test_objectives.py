"""The loss of a batch whose examples have different numbers of candidates."""

import math

import pytest
import torch
from support.families import tiny

from justforward.scoring import Scores, ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objectives import Batch, Classification, Example

SCORES = [[-1.0, -2.0, -0.5], [-3.0, -0.25], [-math.inf, -1.0], [-1.5]]
ALL = [score for scores in SCORES for score in scores]


def measured(values: torch.Tensor, labels: list[int]):
    row = Row((5, 6), 1)
    examples = tuple(Example((row,) * len(s), label) for s, label in zip(SCORES, labels, strict=True))
    batch = Batch(examples, None, len(examples))  # type: ignore[arg-type]
    return Classification().evaluate(Scores(values, torch.ones(len(values), dtype=torch.int64)), batch)


def test_examples_of_different_numbers_of_candidates():
    values = torch.tensor(ALL, requires_grad=True)
    found = measured(values, [2, 1, 1, 0])
    expected = [math.log(sum(math.exp(x - s[label]) for x in s)) for s, label in zip(SCORES, [2, 1, 1, 0], strict=True)]
    assert found.losses is not None
    assert found.correct is not None
    assert found.losses.tolist() == pytest.approx(expected)
    assert found.correct.tolist() == [True] * 4
    found.loss.backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert measured(values.detach(), [0, 0, 0, 0]).loss.isinf()  # the label of the third cannot be


def test_a_score_that_is_no_number_is_not_right():
    found = measured(torch.tensor([math.nan, *ALL[1:]]), [0, 1, 1, 0])
    assert found.correct is not None
    assert found.correct.tolist() == [False, True, True, True]
    assert found.loss.isnan()


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_beyond_the_candidates_is_refused(label):
    rows = (Row((5, 6), 1), Row((5, 7), 1))
    with pytest.raises(ValueError, match=f"label is {label} of 2 candidates: they count from 0"):
        Classification().batch(ScoringEngine(tiny("opt")), [Example(rows, label)])
