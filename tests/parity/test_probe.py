"""Linear probing: the original's head, row sums and norms to the tolerance of the solver, and its accuracy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.families import tiny
from support.golden import DATA, MODEL, epoch_order, facts

from justforward.commands.cli import main
from justforward.models.loading import load
from justforward.models.tuning import untie
from justforward.scoring import ScoringEngine
from justforward.scoring.evaluation import Evaluator
from justforward.scoring.prompts import PromptEncoder, Row
from justforward.tasks import get_task
from justforward.tasks.sampling import eval_indices, train_sets
from justforward.training.linear_probe import Probe, fit, head_inputs, linear_probe, write

FLAGS = ["--data_dir", DATA, "--use_cpu"]


def head_of(model) -> Any:
    return model.get_output_embeddings()


def embedding_of(model) -> Any:
    return model.get_input_embeddings()


def sst2_rows(loaded):
    """Training rows in the order of the original's loader: the folds of the cross-validation depend on it."""
    task = get_task("SST2")
    splits = task.load(DATA)
    encoder = PromptEncoder(loaded.tokenizer, task, bos_token_id=loaded.bos_token_id)
    rows = train_sets(
        len(splits.train), num_train=32, num_dev=None, num_train_sets=None, train_set_seed=0, num_eval_samples=12
    )[0].train
    order = epoch_order(facts("rng")["sampler_seeds"]["seed0|n32"], 32, 32)
    return [encoder.gold(splits.train[rows[i]]) for i in order]


@pytest.mark.parametrize("name", ["lp_sst2", "lp_sst2_untie"])
def test_head_of_the_original(name):
    """On tied weights the original overwrites the embedding with the same rows; we untie."""
    recorded = facts(f"train/{name}")["trainable_after"]
    loaded = load(MODEL)
    embedding = embedding_of(loaded.model).weight.detach().clone()
    if name == "lp_sst2_untie":
        assert untie(loaded.model)
    probe = linear_probe(ScoringEngine(loaded.model), sst2_rows(loaded))
    total, norm = recorded.get("lm_head.weight", recorded["model.decoder.embed_tokens.weight"])
    head = head_of(loaded.model).weight.double()
    assert head.sum().item() == pytest.approx(total, abs=1e-4)
    assert head.norm().item() == pytest.approx(norm, abs=5e-6)
    # The four tokens of " terrible" and " great" are the classes; all else stays.
    assert len(probe.tokens) == 4
    changed = (head.float() != embedding).any(dim=1).nonzero().flatten().tolist()
    assert changed == probe.tokens.tolist()
    assert torch.equal(embedding_of(loaded.model).weight, embedding)


def test_accuracy_of_the_original():
    """With the embedding left alone; the original's tied run reads the overwritten one (docs/parity.md)."""
    loaded = load(MODEL)
    engine = ScoringEngine(loaded.model)
    rows = sst2_rows(loaded)
    linear_probe(engine, rows)
    task = get_task("SST2")
    evaluator = Evaluator(PromptEncoder(loaded.tokenizer, task, bos_token_id=loaded.bos_token_id), engine)
    validation = task.load(DATA).validation
    samples = [validation[i] for i in eval_indices(len(validation), 12, 0)]
    (expected,) = facts("train/lp_sst2_untie")["result_files"].values()
    assert evaluator.metrics(samples, evaluator.evaluate(samples)) == pytest.approx(expected)


@pytest.mark.parametrize("task", ["CB", "Copa", "SQuAD"])
def test_other_tasks_and_saving(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "--task_name",
        task,
        "--model_name",
        MODEL,
        "--trainer",
        "regular",
        "--linear_probing",
        "--num_train",
        "12",
    ]
    words += ["--lp_early_stopping", "--train_set_seed", "0", "--num_eval", "4", "--max_new_tokens", "3"]
    assert main([*words, *FLAGS, "--save_model", "--output_dir", "out", "--result_file", "r.json"]) == 0
    result = json.loads(Path("r.json").read_text())
    assert {"train_accuracy", "penalty"} <= result.keys()
    saved, base = load("out").model, load(MODEL).model
    assert torch.equal(embedding_of(saved).weight, embedding_of(base).weight)
    assert not torch.equal(head_of(saved).weight, head_of(base).weight)


@pytest.mark.parametrize("family", ["opt", "llama", "bloom", "phi"])
def test_features_are_what_the_head_sees(family):
    """Shared prefixes, batches and tokens that many rows share: always the state that predicts the token."""
    model = tiny(family)
    shared = tuple(range(5, 25))
    rows = [Row((*shared, *tail), 19 + k) for k, tail in enumerate([(30, 31), (30, 32, 33, 34), (40, 41, 42)])]
    features, targets = head_inputs(ScoringEngine(model, token_budget=50), rows)
    assert targets.tolist() == [t for row in rows for t in row.tokens[row.start :]]
    inputs = []
    head_of(model).register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    at = 0
    for row in rows:
        with torch.no_grad():
            model(torch.tensor([row.tokens]))
        expected = inputs.pop()[0, row.start - 1 : -1]
        np.testing.assert_allclose(features[at : at + len(expected)], expected, atol=1e-5)
        at += len(expected)


def test_two_classes_keep_the_regressions_odds():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 6)).astype(np.float32)
    targets = np.where(features[:, 0] + 0.3 * generator.normal(size=60) > 0, 7, 3)
    probe = fit(features, targets)
    assert probe.tokens.tolist() == [3, 7]
    np.testing.assert_array_equal(probe.coefficients[0], -probe.coefficients[1])
    scores = features @ probe.coefficients.T
    assert np.mean(probe.tokens[scores.argmax(1)] == targets) == probe.accuracy > 0.8


def test_a_heads_bias_is_cleared_for_the_classes():
    model = tiny("phi")
    head = head_of(model)
    torch.nn.init.ones_(head.bias)
    write(model, Probe(np.array([4, 9]), np.full((2, 32), 0.5), 1.0, 1.0))
    assert head.bias.detach().nonzero().flatten().tolist() == [i for i in range(97) if i not in (4, 9)]
    assert head.weight[[4, 9]].unique().tolist() == [0.5]


@pytest.mark.parametrize("targets", [[5, 5, 5], [5, 6, 7]])
def test_too_little_to_fit(targets):
    with pytest.raises(ValueError, match="raise --num_train"):
        fit(np.ones((3, 2), np.float32), np.array(targets))
