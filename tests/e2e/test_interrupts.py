"""Jobs that a signal stops, and that go on to the very weights of a run in one piece."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.forking import RUN, Forked
from support.golden import DATA, MODEL
from transformers import AutoModelForCausalLM
from transformers.integrations import integration_utils

from justforward import experiment
from justforward.commands.cli import main
from justforward.optim.log import read
from justforward.training.interrupts import SIGNALS, SaveOnInterrupt
from justforward.training.resuming import claimed

# fmt: off
COMMON = [
    "--task_name", "SST2", "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--no_eval",
    "--train_as_classification", "--num_train", "16", "--train_set_seed", "0", "--seed", "0",
    "--max_steps", "10", "--per_device_train_batch_size", "4", "--logging_steps", "1", "--save_strategy", "no",
    "--save_model", "--output_dir", "out", "--save_on_interrupt",
]
PREFIX = ["--prefix_tuning", "--zo_eps", "1e-1", "--learning_rate", "1e-2"]
MLP = [*PREFIX, "--no_reparam", "False", "--prefix_init_by_real_act", "False"]
BEST = [
    "--num_dev", "8", "--load_best_model_at_end", "--save_total_limit", "1",
    "--eval_strategy", "epoch", "--save_strategy", "epoch",
]
# fmt: on
WAYS = {
    "full": ["--trainer", "zo", "--learning_rate", "1e-4"],
    "float16": ["--trainer", "zo", "--learning_rate", "1e-3", "--load_float16"],
    "lora": ["--trainer", "zo", "--lora", "--zo_eps", "1e-2", "--learning_rate", "1e-2"],
    "prefix": ["--trainer", "zo", *PREFIX],
    "prefix by an MLP": ["--trainer", "zo", *MLP],
    "regular": ["--trainer", "regular", "--learning_rate", "1e-3"],
    "regular, accumulated": ["--trainer", "regular", "--learning_rate", "1e-3", "--gradient_accumulation_steps", "2"],
    "regular prefix by an MLP": ["--trainer", "regular", *MLP],
    "best checkpoint": ["--trainer", "regular", "--learning_rate", "1e-3", *BEST],
    "best prefix by an MLP": ["--trainer", "regular", *MLP, *BEST],
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(words, *signals):
    """Run a command line; (step, signal) pairs are sent to this process when that step begins."""

    class Sender(SaveOnInterrupt):
        def on_step_begin(self, args, state, control, **_):
            for step, number in signals:
                if state.global_step + 1 == step:
                    os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "SaveOnInterrupt", Sender)
        return main(words)


def weights(folder):
    folder = Path(folder)
    names = [n for n in ("model.safetensors", "adapter_model.safetensors") if (folder / n).exists()]
    assert len(names) == 1
    return load_file(folder / names[0])


def assert_same(a, b):
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)


def checkpoints(folder="out"):
    return sorted(p.name for p in Path(folder).glob("checkpoint-*"))


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_job_goes_on_to_the_same_weights(way, capsys):
    words = [*COMMON, *WAYS[way]]
    assert run(words, (6, signal.SIGINT)) == 0
    stopped = capsys.readouterr().err
    assert "SIGINT: saving at the end of this step, then stopping" in stopped
    assert "stopped: the checkpoint of step 6 is in out; the same command continues from there" in stopped
    assert checkpoints()[-1] == "checkpoint-6"
    assert not Path("out/model.safetensors").exists()
    assert run(words) == 0
    assert "continuing from out/checkpoint-6" in capsys.readouterr().err
    assert run([*words, "--output_dir", "whole"]) == 0
    assert_same("out", "whole")
    logs = [json.loads(Path(d, "trainer_state.json").read_text())["log_history"] for d in ("out", "whole")]
    losses = [[(entry["step"], entry["loss"]) for entry in log if "loss" in entry] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10


def test_signals_are_given_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    words = [*COMMON, *WAYS["full"]]
    for sent in ([], [(2, signal.SIGUSR1)]):
        assert run([*words, "--overwrite_output_dir"], *sent) == 0
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_sigint_interrupts_at_once(capsys):
    assert run([*COMMON, *WAYS["full"]], (3, signal.SIGINT), (3, signal.SIGINT)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "justforward: interrupted"
    assert checkpoints() == []


def test_sigusr1_from_outside():
    """As a batch system sends it, to a process of its own, while it trains."""
    words = [*COMMON, *WAYS["full"], "--max_steps", "100000"]
    log, said = Path("out/trajectory.log"), Path("said.txt")
    job = Forked([sys.executable, RUN, *words], Path.cwd(), os.environ, said, said)
    try:
        while job.poll() is None and not (log.exists() and read(log).steps):
            time.sleep(0.01)
        assert job.poll() is None, said.read_text()
        os.kill(job.pid, signal.SIGUSR1)
        assert job.wait(timeout=120) == 0, said.read_text()
    finally:
        job.terminate()
    assert "SIGUSR1: saving at the end of this step, then stopping" in said.read_text()
    assert len(checkpoints()) == 1


def test_checkpoints_of_another_job_are_left_alone(capsys):
    words = [*COMMON, *WAYS["full"]]
    assert run(words, (2, signal.SIGINT)) == 0
    other = [*words, "--learning_rate", "1e-5", "--lora"]
    assert run(other) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--output_dir out holds checkpoints of another job (it differs in lora, learning_rate)" in line
    assert "--overwrite_output_dir to delete them" in line
    assert checkpoints() == ["checkpoint-2"]
    assert run([*other, "--overwrite_output_dir"], (4, signal.SIGINT)) == 0
    assert checkpoints() == ["checkpoint-4"]


def test_what_does_not_change_the_weights_may_change(capsys):
    words = [*COMMON, *WAYS["full"]]
    assert run(words, (2, signal.SIGINT)) == 0
    assert run([*words, "--tag", "x", "--logging_steps", "5"]) == 0
    assert "continuing from out/checkpoint-2" in capsys.readouterr().err


def test_resume_as_asked(capsys):
    words = [*COMMON, *WAYS["full"]]
    assert run([*words, "--resume_from_checkpoint", "True"]) == 2
    assert "there is no complete checkpoint in out" in capsys.readouterr().err
    assert run(words, (2, signal.SIGINT)) == 0
    assert run([*words, "--max_steps", "12", "--resume_from_checkpoint", "True"]) == 0
    assert json.loads(Path("out/trainer_state.json").read_text())["global_step"] == 12
    assert run([*words, "--resume_from_checkpoint", "out/checkpoint-3"]) == 2
    assert "--resume_from_checkpoint out/checkpoint-3: no such folder" in capsys.readouterr().err
    elsewhere = [*words, "--output_dir", "elsewhere"]
    assert run([*elsewhere, "--resume_from_checkpoint", "out/checkpoint-2"]) == 0
    assert run([*words, "--resume_from_checkpoint", "False"]) == 2  # a kill would leave another job's as its own
    assert "holds checkpoints of another job (it differs in max_steps)" in capsys.readouterr().err
    assert run([*words, "--resume_from_checkpoint", "False", "--overwrite_output_dir"]) == 0
    assert_same("out", "elsewhere")


def test_a_log_is_not_continued_with_other_settings(capsys):
    words = [*COMMON, *WAYS["full"]]
    assert run(words, (2, signal.SIGINT)) == 0
    assert run(words) == 0
    assert run([*words, "--max_steps", "12", "--resume_from_checkpoint", "True"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(
        "(it differs in max_steps): give another --output_dir, or --overwrite_output_dir to delete them"
    )
    assert checkpoints() == ["checkpoint-2"]


def test_one_job_at_a_time_in_a_folder(capsys):
    words = [*COMMON, *WAYS["full"]]
    with claimed(Path("out")):
        assert run(words) == 2
    assert "--output_dir out: another process trains there now" in capsys.readouterr().err
    assert run(words) == 0


@pytest.mark.parametrize(("name", "reason"), [("tensorboard", "requires tensorboard"), ("abacus", "is not supported")])
def test_reports_that_cannot_be_made(name, reason, capsys, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    assert run([*COMMON, *WAYS["full"], "--report_to", name]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"justforward: error: argument --report_to: {name}: ")
    assert reason in line
    assert not Path("out").exists()


def test_a_checkpoint_cut_short_is_passed_over(capsys):
    words = [*COMMON, *WAYS["regular"], "--save_strategy", "steps", "--save_steps", "2"]
    assert run(words, (5, signal.SIGINT)) == 0
    assert checkpoints() == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    Path("out/checkpoint-5/trainer_state.json").write_text("{")
    assert run(words) == 0
    assert "continuing from out/checkpoint-4" in capsys.readouterr().err
    assert run([*words, "--output_dir", "whole"]) == 0
    assert_same("out", "whole")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT 0.21 under transformers 5.24
def test_a_prefix_by_an_mlp_serves_inference_as_peft_loads_it():
    assert run([*COMMON, *WAYS["prefix by an MLP"]]) == 0
    loaded: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), "out")
    assert torch.equal(loaded.prompt_encoder["default"].embedding.weight, weights("out")["prompt_embeddings"])
    assert loaded.get_prompt(1).get_seq_length() == 5
