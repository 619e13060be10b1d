"""Runs a recorded job of the original again, on its samples in its order, with whatever model and noise are given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from justforward.models.loading import LoadedModel
from justforward.optim import Estimate, MeZO, NoiseSource
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import get_task
from justforward.tasks.sampling import train_sets
from justforward.training.objectives import Classification
from support.golden import DATA, epoch_order, facts

BATCH = 8


def replay_sst2(
    recorded: dict[str, Any], loaded: LoadedModel, noise: NoiseSource, *, position_offset: int | None = None
) -> list[Estimate]:
    """Train `loaded` as the record says (SST2 as classification, seed 0, 32 samples); what every step measured."""
    task = get_task("SST2")
    splits = task.load(DATA)
    encoder = PromptEncoder(loaded.tokenizer, task, bos_token_id=loaded.bos_token_id)
    rows = train_sets(
        len(splits.train), num_train=32, num_dev=8, num_train_sets=None, train_set_seed=0, num_eval_samples=12
    )[0].train
    objective = Classification()
    examples = [objective.encode(encoder, splits.train[i]) for i in rows]
    engine = ScoringEngine(loaded.model)
    if position_offset is not None:
        engine.position_offset = position_offset
    steps, argv = recorded["steps"], recorded["argv"]
    eps = float(argv[argv.index("--zo_eps") + 1])
    optimizer = MeZO(loaded.model.named_parameters(), lr=steps[0]["lr"], eps=eps, noise=noise)
    order = epoch_order(facts("rng")["sampler_seeds"]["seed0|n32"], 32, BATCH * len(steps))
    estimates = []
    for k in range(len(steps)):
        batch = objective.batch(engine, [examples[i] for i in order[BATCH * k : BATCH * (k + 1)]])
        estimates.append(optimizer.estimate(lambda batch=batch: objective.measure(engine, batch).loss))
        optimizer.step()
    return estimates


def lora_of_the_original(seed: int) -> Iterator[torch.Tensor]:
    """A [8, 64] of q, v, q, v: each layer draws its full weight and bias twice before its A."""
    set_seed(seed)
    for _ in range(4):
        nn.Linear(64, 64).reset_parameters()
        yield nn.init.kaiming_uniform_(torch.empty(8, 64), a=math.sqrt(5))
