"""Several processes (gloo, CPU) train as one does: sharded, replicated, and by MeZO, which exchanges scalars only."""

import json
import shlex
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
    alone,
    as_srun_does,
    finish,
    folder,
    largest_difference,
    launch,
    prepare,
    processes,
    saved,
)
from transformers import AutoModelForCausalLM, LlamaConfig

__all__ = ["folder"]


SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "pad_token_id": 1}


@pytest.fixture(scope="module")
def by_one(tmp_path_factory):
    """The weights of a MeZO job by one process."""
    folder = prepare(tmp_path_factory.mktemp("by_one"))
    return launch(folder, "one", [*alone(), *ZO, *JOB, "--per_device_train_batch_size", "4"])


def test_fsdp_equals_one_process(folder):
    """Two by the script itself; one by the command that the script prints."""
    script = ["bash", str(ROOT / "finetune_fsdp.sh"), *JOB, "--optim", "sgd"]
    given = {"PYTHON": sys.executable, "MODEL": "model", "TASK": "SST2", "TRAIN": "16", "DEV": "8", "EVAL": "6"}
    given |= {"MODE": "ft", "LR": "1e-2"}
    finish(folder, "printed", script, NUM_GPU="1", BS="4", DRY_RUN="1", **given)
    one = launch(folder, "one", shlex.split((folder / "printed/stdout.txt").read_text()))
    saving = ["--save_strategy", "steps", "--save_steps", "10"]
    two = launch(folder, "two", [*script, *saving], NUM_GPU="2", BS="2", **given)
    start = saved(folder / "model")
    assert largest_difference(one, start) > 1e-3
    assert largest_difference(one, two) < 1e-5
    assert largest_difference(two, saved(folder / "two/out/checkpoint-10")) == 0


def test_replicas_equal_one_process(folder):
    # A model with buffers, and a budget at which ranks do not make equally many passes.
    vocabulary = json.loads((folder / "model" / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=2, num_attention_heads=2, **SMALL)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    regular = [w if w != "zo" else "regular" for w in ZO]
    job = [*regular, *JOB, "--optim", "sgd", "--learning_rate", "1e-2", "--token_budget", "70"]
    one = launch(folder, "one", [*alone(), *job, "--per_device_train_batch_size", "4"])
    two = launch(folder, "two", [*processes(2), *job, "--per_device_train_batch_size", "2"])
    assert largest_difference(one, two) < 1e-5


def test_mezo_equals_one_process(folder, by_one):
    two = launch(folder, "two", [*processes(2), *ZO, *JOB, "--per_device_train_batch_size", "2"])
    assert largest_difference(by_one, two) < 1e-5


@pytest.mark.skipif(torch.accelerator.is_available(), reason="processes would train on the GPUs")
def test_without_a_gpu_no_process_takes_itself_for_the_only_one(folder):
    """Started by srun, and without --use_cpu; tests/unit/test_launcher.py has what other launchers say."""
    job = [*ZO, *(word for word in JOB if word != "--use_cpu"), "--max_steps", "4"]
    two = [*job, "--per_device_train_batch_size", "2"]
    one = launch(folder, "one", [*alone(), *job, "--per_device_train_batch_size", "4"])
    assert largest_difference(one, launch(folder, "srun", [*as_srun_does(2), *two])) < 1e-5
    assert json.loads((folder / "srun" / "r.json").read_text())["run"]["processes"] == 2


def test_directions_are_spread_over_groups(folder):
    job = [*ZO, *JOB, "--zo_samples", "2", "--per_device_train_batch_size", "4"]
    one = launch(folder, "one", [*alone(), *job])
    two = launch(folder, "two", [*processes(2), *job, "--zo_direction_groups", "2", "--zo_check_steps", "3"])
    assert largest_difference(one, two) < 1e-5
    assert largest_difference(one, saved(folder / "model")) > 1e-4


def test_sharded_mezo_equals_replicas(folder, by_one):
    shards = launch(folder, "shards", [*processes(2), *ZO, *JOB, "--per_device_train_batch_size", "2", "--fsdp"])
    assert largest_difference(by_one, shards) < 1e-5
    assert (folder / "shards/out/trajectory.log").stat().st_size > 40


@pytest.mark.parametrize(("where", "precision"), [("cpu", []), ("disk", ["--load_bfloat16"])])
def test_offloaded_equals_resident(folder, where, precision):
    job = [*alone(), *ZO, *JOB, *precision, "--zo_probe", "just_in_time"]
    resident = launch(folder, "resident", job)
    offloaded = launch(folder, "offloaded", [*job, "--zo_offload", where])
    assert largest_difference(resident, offloaded) == 0
    assert not list((folder / "offloaded/out").glob(".weights*"))


def predictions(folder: Path, name: str, command: list[str]) -> list[dict]:
    """Evaluate only; what was predicted."""
    finish(folder, name, command)
    return [json.loads(line) for line in (folder / name / "r-predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["SST2", "SQuAD"])
def test_evaluation_is_shared(folder, task):
    words = ["--model_name", "model", "--task_name", task, "--num_train", "2", "--num_eval", "5", "--use_cpu"]
    job = [*words, "--data_dir", DATA, "--disable_tqdm", "--result_file", "r.json"]
    job += ["--output_dir", "out", "--max_new_tokens", "8"]
    one = predictions(folder, "one", [*alone(), *job])
    two = predictions(folder, "two", [*processes(2), *job])
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in a.items() if k != "scores"} == {k: v for k, v in b.items() if k != "scores"}
        assert a.get("scores") == pytest.approx(b.get("scores"), abs=1e-5)
