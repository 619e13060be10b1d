"""The original's non-differentiable objective, F1 of generated answers, with its noise: the same trajectory."""

import pytest
from support.golden import FIXTURES, MODEL, OriginalNoise, epoch_order, facts

from justforward.models.loading import load
from justforward.optim import MeZO
from justforward.scoring import ScoringEngine
from justforward.scoring.generation import GenerationSettings, Generator
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import get_task
from justforward.tasks.sampling import train_sets
from justforward.training.rewards import RewardObjective, find_reward


def test_f1_on_squad():
    recorded = facts("train/mezo_ft_squad_nondiff")
    task = get_task("SQuAD")
    train = task.load(str(FIXTURES / "golden" / "data-nondiff")).train
    loaded = load(MODEL)
    encoder = PromptEncoder(loaded.tokenizer, task, bos_token_id=0, max_new_tokens=8)
    generator = Generator(loaded.model, loaded.tokenizer, GenerationSettings(max_new_tokens=8))
    objective = RewardObjective(find_reward(None, task), generator)
    rows = train_sets(len(train), num_train=32, num_dev=8, num_train_sets=None, train_set_seed=0, num_eval_samples=12)[
        0
    ].train
    examples = [objective.encode(encoder, train[i]) for i in rows]
    engine = ScoringEngine(loaded.model)
    noise = OriginalNoise(facts("rng")["zo_random_seeds"]["0"])
    optimizer = MeZO(loaded.model.named_parameters(), lr=recorded["steps"][0]["lr"], eps=1e-2, noise=noise)
    order = epoch_order(facts("rng")["sampler_seeds"]["seed0|n32"], 32, 80)
    for k, step in enumerate(recorded["steps"]):
        batch = objective.batch(engine, [examples[i] for i in order[8 * k : 8 * (k + 1)]])
        estimate = optimizer.estimate(lambda batch=batch: objective.measure(engine, batch).loss)
        optimizer.step()
        assert estimate.plus == pytest.approx(step["loss1"], abs=1e-6)
        assert estimate.minus == pytest.approx(step["loss2"], abs=1e-6)
        assert estimate.projected_grad == pytest.approx(step["projected_grad"], abs=1e-4)
    for name, parameter in loaded.model.named_parameters():
        assert parameter.double().norm().item() == pytest.approx(recorded["trainable_after"][name][1], rel=1e-5)
