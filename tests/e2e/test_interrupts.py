"""Jobs that a signal stops, in processes of their own, and that go on to the very weights of a run in one piece."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.golden import DATA, MODEL

from justforward.cli import main

STEPS = 12
# fmt: off
COMMON = [
    "--task_name", "SST2", "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--no_eval",
    "--train_as_classification", "--num_train", "16", "--train_set_seed", "0", "--seed", "0",
    "--max_steps", str(STEPS), "--per_device_train_batch_size", "4", "--logging_steps", "1", "--save_strategy", "no",
    "--save_model", "--output_dir", "out", "--save_on_interrupt",
]
PREFIX = ["--prefix_tuning", "--zo_eps", "1e-1", "--learning_rate", "1e-2"]
# fmt: on
WAYS = {
    "full": ["--trainer", "zo", "--learning_rate", "1e-4"],
    "float16": ["--trainer", "zo", "--learning_rate", "1e-3", "--load_float16"],
    "lora": ["--trainer", "zo", "--lora", "--zo_eps", "1e-2", "--learning_rate", "1e-2"],
    "prefix": ["--trainer", "zo", *PREFIX],
    "prefix_mlp": ["--trainer", "zo", *PREFIX, "--no_reparam", "False", "--prefix_init_by_real_act", "False"],
    "regular": ["--trainer", "regular", "--learning_rate", "1e-3"],
    "regular_prefix_mlp": [
        *["--trainer", "regular", *PREFIX, "--no_reparam", "False", "--prefix_init_by_real_act", "False"]
    ],
}
# Runs one command line in a process that sends itself a signal after the given steps.
PROGRAM = """
import os, signal, sys
from transformers import TrainerCallback
import justforward.experiment as experiment
from justforward.cli import main

class Signals(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        for step, number in zip(steps, numbers):
            if state.global_step + 1 == step:
                os.kill(os.getpid(), number)

steps, numbers = ([int(x) for x in word.split(",")] for word in sys.argv[1:3])
made = experiment.SaveOnInterrupt
class Both(made):
    def on_step_begin(self, *args, **kwargs):
        Signals().on_step_begin(*args, **kwargs)
experiment.SaveOnInterrupt = Both
raise SystemExit(main(sys.argv[3:]))
"""


def interrupted(words, *, steps="5", numbers=str(int(signal.SIGINT))):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, steps, numbers, *words], capture_output=True, text=True, env=dict(os.environ)
    )


def weights(folder):
    folder = Path(folder)
    names = [n for n in ("model.safetensors", "adapter_model.safetensors") if (folder / n).exists()]
    assert len(names) == 1
    return load_file(folder / names[0])


def assert_same(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_job_goes_on_to_the_same_weights(way, capsys):
    words = [*COMMON, *WAYS[way]]
    ran = interrupted(words)
    assert ran.returncode == 0, ran.stderr
    assert "SIGINT: saving at the end of this step, then stopping" in ran.stderr
    assert "stopped: the checkpoint of step 5 is in out; the same command continues from there" in ran.stderr
    assert [p.name for p in Path("out").glob("checkpoint-*")] == ["checkpoint-5"]
    assert main(words) == 0
    assert "continuing from out/checkpoint-5" in capsys.readouterr().err
    assert main([*words, "--output_dir", "whole"]) == 0
    assert_same("out", "whole")
    history = json.loads(Path("out/trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, STEPS + 1))
