"""MeZO in the Hugging Face Trainer: only its public hooks, all of its features."""

import copy
from typing import Any

import pytest
import torch
from support.families import tiny
from transformers import Trainer, TrainingArguments

from justforward import MeZOMixin, MeZOTrainer


def dataset(rows: int = 16) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (rows, 12), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def arguments(folder, **overrides: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    return TrainingArguments(**settings | overrides)


def train(folder, *, resume: Any = None, **overrides: Any) -> MeZOTrainer:
    trainer = MeZOTrainer(
        model=tiny("llama"), args=arguments(folder, **overrides), train_dataset=dataset(), eval_dataset=dataset(4)
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    assert isinstance(trainer.model, torch.nn.Module)
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


def test_trains_without_gradients_and_logs_what_it_measured(tmp_path):
    trainer = train(tmp_path)
    assert not equal(weights(trainer), dict(tiny("llama").named_parameters()))
    assert isinstance(trainer.model, torch.nn.Module)
    assert all(p.grad is None for p in trainer.model.parameters())
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 6
    for entry in logs:
        assert {"projected_grad", "learning_rate", "skipped_steps", "steps_per_second", "peak_memory_mib"} <= set(entry)
    assert trainer.mezo is not None
    assert trainer.mezo.steps_done == 6


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path):
    first, second, other = (train(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert equal(weights(first), weights(second))
    assert not equal(weights(first), weights(other))


def test_logged_loss_is_the_mean_of_the_probes(tmp_path):
    trainer = train(tmp_path, max_steps=1)
    assert trainer.mezo is not None
    assert trainer.mezo.last is not None
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(trainer.mezo.last.loss, abs=1e-3)


def test_the_schedule_reaches_the_step(tmp_path):
    trainer = train(tmp_path, lr_scheduler_type="linear")
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_accumulation_equals_the_whole_batch(tmp_path):
    whole = train(tmp_path, per_device_train_batch_size=8, max_steps=2)
    parts = train(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=2)
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(parts)[name], atol=1e-6), name
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_resumes_to_the_same_weights(tmp_path):
    straight = train(tmp_path / "a", save_strategy="steps", save_steps=3)
    resumed = train(tmp_path / "a", resume=str(tmp_path / "a" / "checkpoint-3"), save_strategy="steps", save_steps=3)
    assert equal(weights(straight), weights(resumed))


def test_best_checkpoint_is_loaded(tmp_path):
    trainer = train(
        tmp_path,
        learning_rate=1e-2,  # too large: the loss rises, so the first evaluation stays the best
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(losses, key=lambda step: losses[step])
    assert trainer.state.best_model_checkpoint is not None
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-4)


def test_no_weight_decay_on_biases_and_norms(tmp_path):
    trainer = train(tmp_path, weight_decay=0.1, max_steps=1)
    assert trainer.mezo is not None
    decay = {n: g["weight_decay"] for g in trainer.mezo.param_groups for n in g["param_names"]}
    assert decay["model.layers.0.self_attn.q_proj.weight"] == 0.1
    assert decay["model.norm.weight"] == 0.0
    assert decay["model.layers.0.input_layernorm.weight"] == 0.0


def test_dropout_is_off(tmp_path):
    model: Any = tiny("gpt2")
    seen = []
    model.transformer.h[0].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    MeZOTrainer(model=model, args=arguments(tmp_path, max_steps=2), train_dataset=dataset()).train()
    assert seen
    assert not any(seen)


def test_gradient_scaling_is_refused(tmp_path):
    args = arguments(tmp_path)
    args.fp16 = True
    with pytest.raises(ValueError, match="load_bfloat16"):
        MeZOTrainer(model=tiny("llama"), args=args, train_dataset=dataset())


@pytest.mark.parametrize("probe", ["paired", "just_in_time"])
def test_a_compiled_model_is_not_probed_just_in_time(tmp_path, probe):
    args = arguments(tmp_path)
    args.torch_compile = True
    with pytest.raises(ValueError, match="--zo_probe copy"):
        MeZOTrainer(model=tiny("llama"), args=args, train_dataset=dataset(), zo_probe=probe)


def test_a_compiled_model_is_probed_from_a_copy(tmp_path):
    args = arguments(tmp_path)
    args.torch_compile = True
    trainer = MeZOTrainer(model=tiny("llama"), args=args, train_dataset=dataset())
    assert trainer.mezo_settings["probe"] == "copy"


def test_the_mixin_fits_any_trainer(tmp_path):
    class Doubled(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            loss = super().compute_loss(model, inputs, return_outputs=False, **kwargs)
            return loss * 2  # type: ignore[operator]

    class DoubledMeZO(MeZOMixin, Doubled):
        pass

    plain = MeZOTrainer(model=tiny("llama"), args=arguments(tmp_path, max_steps=1), train_dataset=dataset())
    plain.train()
    doubled = DoubledMeZO(model=tiny("llama"), args=arguments(tmp_path, max_steps=1), train_dataset=dataset())
    doubled.train()
    assert doubled.mezo is not None and doubled.mezo.last is not None  # noqa: PT018
    assert plain.mezo is not None and plain.mezo.last is not None  # noqa: PT018
    assert doubled.mezo.last.projected_grad == pytest.approx(2 * plain.mezo.last.projected_grad, rel=1e-3, abs=1e-3)


def test_a_copy_of_the_optimizer_state_has_no_tensors(tmp_path):
    trainer = train(tmp_path, max_steps=2)
    assert trainer.mezo is not None
    state = copy.deepcopy(trainer.mezo.state_dict())["state"]
    assert state == {"mezo": {"step": 2, "seed": 42, "skipped": 0, "skipped_in_a_row": 0, "zero": 0}}
