"""Candidate scores, predictions, generated texts and metrics of the original, for every task and mode."""

import pytest
from support.golden import DATA, facts

from justforward.scoring import ScoringEngine
from justforward.scoring.evaluation import Evaluator
from justforward.scoring.generation import GenerationSettings, Generator
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import get_task

CASES = [(task, mode) for task, modes in facts("scores").items() for mode in modes]


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_scores(golden, name, mode):
    recorded = facts("scores")[name][mode]
    arguments = recorded["args"]
    task = get_task(name)
    splits = task.load(DATA)
    new_tokens = {"max_new_tokens": arguments["max_new_tokens"]} if task.generation else {}
    encoder = PromptEncoder(
        golden.tokenizer, task, max_length=arguments.get("max_length", 2048), bos_token_id=0, **new_tokens
    )
    settings = {k: v for k, v in arguments.items() if k in ("max_new_tokens", "num_beams")}
    evaluator = Evaluator(
        encoder,
        ScoringEngine(golden.model),
        Generator(golden.model, golden.tokenizer, GenerationSettings(**settings)) if task.generation else None,
        calibration=mode if mode in ("sfc", "icl_sfc") else None,
    )
    chosen = [row["i"] for row in recorded["rows"]] if task.generation else range(len(splits.validation))
    samples = [splits.validation[i] for i in chosen]
    demonstrations = [splits.train[i] for i in facts("encode")[name]["demonstrations"]] if recorded["demos"] else []
    outcomes = evaluator.evaluate(samples, [demonstrations] * len(samples))
    by_index = dict(zip(chosen, outcomes, strict=True))
    for row in recorded["rows"]:
        outcome = by_index[row["i"]]
        if task.generation:
            assert outcome.predicted == row["pred"]
        else:
            # Calibrated scores are differences of sums over up to 30 tokens, in other orders of addition.
            assert outcome.scores == pytest.approx(row["scores"], abs=1e-4 if "sfc" in mode else 1e-5)
            assert outcome.candidates is not None
            assert outcome.predicted == outcome.candidates[row["pred"]]
    assert evaluator.metrics(samples, outcomes)[task.metric] == pytest.approx(recorded["metric"])
