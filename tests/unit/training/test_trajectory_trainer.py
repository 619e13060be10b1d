"""The log of a Trainer's run: replayed, resumed from, and in place of checkpoints, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import tiny
from transformers import TrainerCallback, TrainingArguments

from justforward import MeZOTrainer
from justforward.models.logged import apply_steps, groups_of
from justforward.optim import MeZO
from justforward.optim.log import LogError, read


def rows(count: int = 16) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(3, 90, (count, 12), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]


class Killed(Exception):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def trainer(folder: Path, *, dtype: torch.dtype = torch.float32, kill_at: int = 0, more: Any = None, **overrides: Any):
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 4,
        "max_steps": 8,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "lr_scheduler_type": "linear",
        "weight_decay": 0.1,
    }
    return MeZOTrainer(
        model=tiny("llama", dtype=dtype),
        args=TrainingArguments(**settings | overrides),
        train_dataset=rows(),
        eval_dataset=rows(4),
        callbacks=[KillAt(kill_at)] if kill_at else None,
        **(more or {}),
    )


def weights(t: MeZOTrainer) -> dict[str, torch.Tensor]:
    assert isinstance(t.model, torch.nn.Module)
    return {n: p.detach().clone() for n, p in t.model.named_parameters()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("more", [{}, {"zo_samples": 2}, {"zo_rounding": "compensated"}, {"zo_rounding": "nearest"}])
def test_a_replay_is_the_run(dtype, more, tmp_path):
    ran = trainer(tmp_path, dtype=dtype, more=more)
    ran.train()
    log = read(tmp_path / "trajectory.log")
    assert len(log.steps) == 8
    model = tiny("llama", dtype=dtype)
    rounding = log.header["rounding"].split()[0]
    groups = groups_of(log.header, model)
    mezo = MeZO(groups, seed=log.header["seed"], samples=log.header["samples"], rounding=rounding)
    apply_steps(mezo, log.header, log.steps)
    assert equal(dict(model.named_parameters()), weights(ran))


@pytest.mark.parametrize("kill_at", [1, 4, 7])
@pytest.mark.parametrize("save", ["no", "steps"])
def test_a_killed_run_goes_on_from_its_log(kill_at, save, tmp_path):
    checkpoints: dict[str, Any] = {"save_strategy": save, "save_steps": 3}
    whole = trainer(tmp_path / "whole", **checkpoints)
    whole.train()
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", kill_at=kill_at, **checkpoints).train()
    log = tmp_path / "killed" / "trajectory.log"
    assert len(read(log).steps) == kill_at
    again = trainer(tmp_path / "killed", **checkpoints)
    again.train(resume_from_checkpoint=str(log))
    assert equal(weights(again), weights(whole))
    assert read(log).steps == read(tmp_path / "whole" / "trajectory.log").steps


def test_resuming_from_a_checkpoint_drops_the_records_behind_it(tmp_path):
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path, **saving)
    whole.train()
    steps = read(tmp_path / "trajectory.log").steps
    again = trainer(tmp_path, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert read(tmp_path / "trajectory.log").steps == steps
    assert equal(weights(again), weights(whole))


def test_checkpoints_without_weights(tmp_path):
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    saving |= {"load_best_model_at_end": True, "learning_rate": 1e-2}  # too large: an early step is the best
    plain = trainer(tmp_path / "plain", **saving)
    plain.train()
    light = trainer(tmp_path / "light", more={"save_trajectory": True}, **saving)
    light.train()
    assert light.state.best_model_checkpoint is not None
    assert Path(light.state.best_model_checkpoint).name == Path(str(plain.state.best_model_checkpoint)).name
    assert Path(light.state.best_model_checkpoint).name != "checkpoint-8"
    assert not list((tmp_path / "light").glob("**/*.safetensors"))
    assert equal(weights(light), weights(plain))
    resumed = trainer(tmp_path / "light", more={"save_trajectory": True}, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "light" / "checkpoint-4"))
    assert equal(weights(resumed), weights(plain))


def test_a_log_of_another_run_is_named_as_such(tmp_path):
    trainer(tmp_path).train()
    log = str(tmp_path / "trajectory.log")
    with pytest.raises(LogError, match="another run: schedule"):
        trainer(tmp_path, learning_rate=1e-4).train(resume_from_checkpoint=log)
    with pytest.raises(LogError, match="another run: seed was 42, is 1"):
        trainer(tmp_path, seed=1).train(resume_from_checkpoint=log)


def test_a_damaged_log_is_named_as_such(tmp_path):
    trainer(tmp_path).train()
    path = tmp_path / "trajectory.log"
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # the last but one record
    path.write_bytes(data)
    with pytest.raises(LogError, match=r"record 6 .* is damaged; 6 steps before it are intact"):
        trainer(tmp_path).train(resume_from_checkpoint=str(path))


def test_twenty_thousand_steps_fit_in_100_kb(tmp_path):
    trainer(tmp_path, max_steps=1).train()
    log = read(tmp_path / "trajectory.log")
    assert log.start + 20_000 * 4 < 100_000
    header = json.loads(json.dumps(log.header))
    assert {"base", "seed", "noise", "rounding", "schedule", "parameters", "version", "groups"} <= set(header)
