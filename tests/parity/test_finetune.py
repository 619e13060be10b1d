"""The original's fine-tuning by backpropagation: losses, gradient norms and final weights over the recorded steps.

Dropout is 0 in the records, so nothing is random but the order of the batches and new parameters.
"""

import math
from typing import Any

import pytest
import torch
from support.golden import DATA, MODEL, epoch_order, facts
from support.replay import lora_of_the_original
from torch import nn
from transformers import set_seed

from justforward.models.loading import load
from justforward.models.tuning import TuningSettings, tune
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import get_task
from justforward.tasks.sampling import train_sets
from justforward.training.objectives import Classification, TeacherForcing

BATCH = 8
LAYERS = [f"model.decoder.layers.{i}.self_attn" for i in range(2)]


class OldAdamW(torch.optim.Optimizer):
    """The AdamW of transformers 4: eps is added before the bias correction, and weights decay after the step."""

    def __init__(self, params: Any):
        super().__init__(params, {"lr": 0.0, "weight_decay": 0.0})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.steps += 1
        for group in self.param_groups:
            rate = group["lr"] * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
            for p in group["params"]:
                state = self.state.setdefault(p, {"m": torch.zeros_like(p), "v": torch.zeros_like(p)})
                state["m"].mul_(0.9).add_(p.grad, alpha=0.1)
                state["v"].mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                p.addcdiv_(state["m"], state["v"].sqrt() + 1e-8, value=-rate)
                p.mul_(1 - group["lr"] * group["weight_decay"])


def value(argv, flag, default):
    return argv[argv.index(flag) + 1] if flag in argv else default


def without_dropout(**settings):
    loaded = load(MODEL)
    for module in loaded.model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            vars(module)["dropout"] = 0.0
    set_seed(0)
    return tune(loaded, TuningSettings(**settings))


def replay(recorded, loaded, *, position_offset=None):
    """Train `loaded` as the record says; (loss, gradient norm) of every step."""
    argv, steps = recorded["argv"], recorded["steps"]
    task = get_task("SST2")
    splits = task.load(DATA)
    encoder = PromptEncoder(loaded.tokenizer, task, bos_token_id=loaded.bos_token_id)
    rows = train_sets(
        len(splits.train), num_train=32, num_dev=8, num_train_sets=None, train_set_seed=0, num_eval_samples=12
    )[0].train
    objective = Classification() if "--train_as_classification" in argv else TeacherForcing()
    examples = [objective.encode(encoder, splits.train[i]) for i in rows]
    engine = ScoringEngine(loaded.model)
    if position_offset is not None:
        engine.position_offset = position_offset
    parameters = [p for p in loaded.model.parameters() if p.requires_grad]
    decay = float(value(argv, "--weight_decay", "0"))
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    kind = torch.optim.AdamW if value(argv, "--optim", "") == "adamw_torch" else OldAdamW
    optimizer = kind(groups)
    loaded.model.train()
    order = epoch_order(facts("rng")["sampler_seeds"]["seed0|n32"], 32, BATCH * len(steps))
    measured = []
    for k, step in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
        batch = objective.batch(engine, [examples[i] for i in order[BATCH * k : BATCH * (k + 1)]])
        optimizer.zero_grad()
        loss = objective.measure(engine, batch).loss
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        measured.append((loss.item(), norm.item()))
    return measured


def assert_same_steps(measured, recorded, tolerance=1e-5):
    for (loss, norm), step in zip(measured, recorded["steps"], strict=True):
        assert loss == pytest.approx(step["loss"], abs=tolerance)
        assert norm == pytest.approx(step["grad_norm"], rel=1e-4, abs=1e-4)


def assert_same_tensor(tensor, total_and_norm):
    # Adam divides by the gradient's own size: where that is rounding error (biases of keys), so is the step.
    total, norm = total_and_norm
    assert tensor.double().norm().item() == pytest.approx(norm, rel=1e-3)
    assert tensor.double().sum().item() == pytest.approx(total, abs=1e-3 * tensor.numel() ** 0.5 + 1e-3)


@pytest.mark.parametrize("name", ["ft_sst2_adamw_torch_nodrop", "ft_sst2_nodrop", "ft_sst2_lm_nodrop_wd_const"])
def test_all_parameters(name):
    recorded = facts(f"train/{name}")
    loaded = without_dropout()
    assert_same_steps(replay(recorded, loaded), recorded)
    for parameter_name, parameter in loaded.model.named_parameters():
        assert_same_tensor(parameter, recorded["trainable_after"][parameter_name])


def test_lora():
    recorded = facts("train/ft_lora_sst2_nodrop")
    loaded = without_dropout(method="lora")
    start = dict(zip([f"{layer}.{p}_proj" for layer in LAYERS for p in "qv"], lora_of_the_original(0), strict=True))
    for name, parameter in loaded.model.named_parameters():
        if "lora_A" in name:
            parameter.data.copy_(start[name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")])
    assert_same_steps(replay(recorded, loaded), recorded)
    for name, parameter in loaded.model.named_parameters():
        if parameter.requires_grad:
            original = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            assert_same_tensor(parameter, recorded["trainable_after"][original])


def test_prefix():
    recorded = facts("train/ft_prefix_sst2_nodrop")
    loaded = without_dropout(method="prefix")
    # The original does not shift the positions of the tokens behind a prefix.
    assert_same_steps(replay(recorded, loaded, position_offset=0), recorded)
    (prefix,) = [p for p in loaded.model.parameters() if p.requires_grad]
    parts = [f"{layer}.prefix_{kind}" for layer in LAYERS for kind in ("keys", "values")]
    for part, values in zip(parts, prefix.split(64, dim=1), strict=True):
        assert_same_tensor(values, recorded["trainable_after"][part])
