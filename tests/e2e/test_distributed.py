"""Several processes (gloo, CPU) train as one does: sharded, replicated, and by MeZO, which exchanges scalars only."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.golden import DATA
from support.launching import (
    JOB,
    ROOT,
    ZO,
    as_srun_does,
    folder,
    largest_difference,
    launch,
    processes,
)
from transformers import AutoModelForCausalLM, LlamaConfig

__all__ = ["folder"]


SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "pad_token_id": 1}


def test_fsdp_equals_one_process(folder):
    script = ["bash", str(ROOT / "finetune_fsdp.sh"), *JOB, "--optim", "sgd"]
    one = launch(folder, "one", script, NUM_GPU="1", BS="4", LR="1e-2")
    saving = ["--save_strategy", "steps", "--save_steps", "10"]
    two = launch(folder, "two", [*script, *saving], NUM_GPU="2", BS="2", LR="1e-2")
    start = dict(AutoModelForCausalLM.from_pretrained(folder / "model").state_dict())
    assert largest_difference(one, start) > 1e-3
    assert largest_difference(one, two) < 1e-5
    checkpoint = AutoModelForCausalLM.from_pretrained(folder / "two/out/checkpoint-10")
    assert largest_difference(two, dict(checkpoint.state_dict())) == 0


def test_replicas_equal_one_process(folder):
    # A model with buffers, and a budget at which ranks do not make equally many passes.
    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=2, num_attention_heads=2, **SMALL)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    regular = [w if w != "zo" else "regular" for w in ZO]
    job = [str(ROOT / "run.py"), *regular, *JOB, "--optim", "sgd", "--learning_rate", "1e-2", "--token_budget", "70"]
    one = launch(folder, "one", [sys.executable, *job, "--per_device_train_batch_size", "4"])
    two = launch(folder, "two", [*processes(2), *job, "--per_device_train_batch_size", "2"])
    assert largest_difference(one, two) < 1e-5


def test_mezo_equals_one_process(folder):
    job = [str(ROOT / "run.py"), *ZO, *JOB]
    one = launch(folder, "one", [sys.executable, *job, "--per_device_train_batch_size", "4"])
    two = launch(folder, "two", [*processes(2), *job, "--per_device_train_batch_size", "2"])
    assert largest_difference(one, two) < 1e-5


@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would train on the GPUs")
def test_without_a_gpu_no_process_takes_itself_for_the_only_one(folder):
    """Started by srun, and without --use_cpu; tests/unit/test_launcher.py has what other launchers say."""
    job = [str(ROOT / "run.py"), *ZO, *(word for word in JOB if word != "--use_cpu"), "--max_steps", "4"]
    two = [*job, "--per_device_train_batch_size", "2"]
    one = launch(folder, "one", [sys.executable, *job, "--per_device_train_batch_size", "4"])
    assert largest_difference(one, launch(folder, "srun", [*as_srun_does(2), *two])) < 1e-5
    assert json.loads((folder / "srun" / "r.json").read_text())["run"]["processes"] == 2


def test_directions_are_spread_over_groups(folder):
    job = [str(ROOT / "run.py"), *ZO, *JOB, "--zo_samples", "2", "--per_device_train_batch_size", "4"]
    one = launch(folder, "one", [sys.executable, *job])
    two = launch(folder, "two", [*processes(2), *job, "--zo_direction_groups", "2", "--zo_check_steps", "3"])
    assert largest_difference(one, two) < 1e-5
    start = dict(AutoModelForCausalLM.from_pretrained(folder / "model").state_dict())
    assert largest_difference(one, start) > 1e-4


def test_sharded_mezo_equals_replicas(folder):
    job = [str(ROOT / "run.py"), *ZO, *JOB, "--per_device_train_batch_size", "2"]
    replicas = launch(folder, "replicas", [sys.executable, *[w if w != "2" else "4" for w in job]])
    shards = launch(folder, "shards", [*processes(2), *job, "--fsdp"])
    assert largest_difference(replicas, shards) < 1e-5
    assert (folder / "shards/out/trajectory.log").stat().st_size > 40


@pytest.mark.parametrize(("where", "precision"), [("cpu", []), ("disk", ["--load_bfloat16"])])
def test_offloaded_equals_resident(folder, where, precision):
    job = [sys.executable, str(ROOT / "run.py"), *ZO, *JOB, *precision, "--zo_probe", "just_in_time"]
    resident = launch(folder, "resident", job)
    offloaded = launch(folder, "offloaded", [*job, "--zo_offload", where])
    assert largest_difference(resident, offloaded) == 0
    assert not list((folder / "offloaded/out").glob(".weights*"))


def predictions(folder: Path, name: str, command: list[str]) -> list[dict]:
    """Evaluate only; what was predicted."""
    (folder / name).mkdir()
    (folder / name / "model").symlink_to(folder / "model")
    ran = subprocess.run(command, cwd=folder / name, capture_output=True, text=True, timeout=150)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads(line) for line in (folder / name / "r-predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["SST2", "SQuAD"])
def test_evaluation_is_shared(folder, task):
    words = ["--model_name", "model", "--task_name", task, "--num_train", "2", "--num_eval", "5", "--use_cpu"]
    job = [str(ROOT / "run.py"), *words, "--data_dir", DATA, "--disable_tqdm", "--result_file", "r.json"]
    job += ["--output_dir", "out", "--max_new_tokens", "8"]
    one = predictions(folder, "one", [sys.executable, *job])
    two = predictions(folder, "two", [*processes(2), *job])
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in a.items() if k != "scores"} == {k: v for k, v in b.items() if k != "scores"}
        assert a.get("scores") == pytest.approx(b.get("scores"), abs=1e-5)
