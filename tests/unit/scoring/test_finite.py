"""Scores that are not numbers are no choice: an error, a wrong answer that is counted, a step that is skipped."""

from contextlib import nullcontext
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from support.families import tiny
from support.golden import DATA
from transformers import EvalPrediction, TrainingArguments

from justforward.scoring import ScoringEngine
from justforward.scoring.evaluation import Evaluator
from justforward.scoring.finite import NotNumbersError, is_choice, likely_cause, numbers_only
from justforward.scoring.prompts import Row
from justforward.scoring.remarks import Remarks
from justforward.tasks import get_task
from justforward.tasks.base import Sample
from justforward.training.objective_trainer import ObjectiveMeZOTrainer, ObjectiveTrainer, _accuracy
from justforward.training.objectives import Classification, Example, TeacherForcing
from justforward.training.rewards import RewardObjective


@pytest.mark.parametrize(
    ("scores", "means_something"),
    [
        ((-1.0, -2.0), True),
        ((-1.0, -inf), True),  # a token that the model never writes
        ((-inf, -inf), False),
        ((nan, -1.0), False),
        ((-1.0, nan), False),
        ((inf, -1.0), False),
        ((nan, nan), False),
        ((0.0,), True),
    ],
)
def test_a_choice_is_among_numbers(scores, means_something):
    assert is_choice(scores) == means_something


def test_the_cause_is_looked_for_in_the_weights():
    model = tiny("llama")
    assert "the model overflows on the way" in likely_cause(model)
    assert (
        likely_cause(model.half()) == "float16 overflows on this model: give --load_bfloat16 in place of --load_float16"
    )
    with torch.no_grad():
        model.model.norm.weight[3] = inf
        assert likely_cause(model).startswith(
            "1 of 32 values of the weight model.norm.weight are too large for float16"
        )
        model.model.norm.weight[4] = nan
    assert likely_cause(model).startswith(
        "2 of 32 values of the weight model.norm.weight are NaN or infinite: the check"
    )


class Words:
    """An encoder whose two options are these tokens."""

    task = get_task("SST2")

    def __init__(self, first: int, second: int):
        self.options = (first, second)

    def noting(self):
        return nullcontext(Remarks(8))

    def candidates(self, sample, demonstrations=(), *, calibration=False):
        return [Row((5, 6, 7, option), 3) for option in self.options]


def masked(value: float, token: int = 9) -> Any:
    """A model that gives one token's logit this value."""
    model = tiny("phi")  # its head has a bias
    with torch.no_grad():
        model.lm_head.bias[token] = value
    return model


def evaluated(model, first, second):
    (sample,) = get_task("SST2").load(DATA).validation[:1]
    encoder: Any = Words(first, second)
    evaluator = Evaluator(encoder, ScoringEngine(model))
    return evaluator.evaluate([sample])[0]


def test_an_option_may_be_impossible_but_not_all():
    assert evaluated(masked(-inf), 9, 8).predicted == 1
    assert evaluated(masked(-inf), 8, 9).predicted == 0
    with pytest.raises(NotNumbersError, match="1 of 1 samples have scores that are not numbers"):
        evaluated(masked(-inf), 9, 9)
    for value in (inf, nan):
        with pytest.raises(NotNumbersError, match=r"1 of 97 values of the weight lm_head\.bias"):
            evaluated(masked(value), 7, 8)


@pytest.mark.parametrize("sampling", [False, True])
def test_generated_text_is_made_of_numbers_too(sampling):
    ask: dict[str, Any] = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 4]]), "attention_mask": torch.ones(2, 3)}
    ask |= {"max_new_tokens": 3, "do_sample": sampling}
    for value in (nan, inf):
        model = masked(value)
        with pytest.raises(NotNumbersError, match="logits are not numbers in 2 of 2 rows"), numbers_only(model):
            model.generate(**ask)
        assert not model._forward_hooks
    with numbers_only(model := masked(-inf)):
        assert 9 not in model.generate(**ask)[:, 3:]


def examples(count: int = 8) -> list[Example]:
    prompts = [(5 + 3 * i, 6 + 3 * i, 7 + 3 * i) for i in range(count)]  # none shares a tree with another
    options = [((*prompt, 50), (*prompt, 51)) for prompt in prompts]
    return [Example(tuple(Row(tokens, 3) for tokens in rows), 0) for rows in options]


def test_a_loss_that_is_not_finite_is_no_right_answer():
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = nan  # the second example's
        engine, objective = ScoringEngine(model), Classification()
        measured = objective.measure(engine, objective.batch(engine, examples(4)))
    assert measured.correct is not None
    assert measured.losses is not None
    assert measured.losses.isfinite().tolist() == [True, False, True, True]
    assert not measured.correct[1]
    assert measured.loss.isnan()


def test_accuracy_counts_them_as_wrong_and_says_how_many():
    labels = np.zeros(4)
    assert _accuracy(EvalPrediction(np.array([1, 0, nan, 1], np.float32), labels)) == {"accuracy": 0.5, "not_finite": 1}
    assert _accuracy(EvalPrediction(np.array([1, 0, 0, 1], np.float32), labels)) == {"accuracy": 0.5}


@pytest.mark.parametrize("kind", [ObjectiveTrainer, ObjectiveMeZOTrainer])
@pytest.mark.parametrize("objective", [Classification(), TeacherForcing()])
def test_an_evaluation_on_the_way_says_so(kind, objective, tmp_path, caplog):
    model = tiny("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[9] = nan
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, per_device_eval_batch_size=2
    )
    trainer = kind(
        model=model, args=arguments, objective=objective, engine=ScoringEngine(model), eval_dataset=examples(8)
    )
    metrics = trainer.evaluate()
    chosen = isinstance(objective, Classification)
    assert metrics.get("eval_not_finite") == (1 if chosen else None)
    assert "step 0: eval_loss is nan" in caplog.text
    assert (", in 1 examples, which count as wrong" in caplog.text) == chosen


def test_fine_tuning_logs_a_loss_that_is_not_finite_as_it_is(tmp_path):
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[50] = nan
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", disable_tqdm=True, max_steps=1, logging_steps=1
    )
    trainer = ObjectiveTrainer(
        model=model, args=arguments, objective=Classification(), engine=ScoringEngine(model), train_dataset=examples(8)
    )
    trainer.train()
    assert np.isnan(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))


def test_a_reward_of_no_numbers_is_a_step_to_skip():
    sample = Sample(id=0, data={}, candidates=(0, 1), correct=1)
    model: Any = tiny("llama")
    engine = ScoringEngine(model)
    objective = RewardObjective(lambda samples, outputs: [1.0] * len(samples))
    batch = objective.batch(engine, [Example(one.rows, 0, sample) for one in examples(2)])
    assert objective.measure(engine, batch).loss == -1
    with torch.no_grad():
        model.lm_head.weight[50] = nan
    assert objective.measure(engine, batch).loss.isnan()
