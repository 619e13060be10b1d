"""A job's log: killed at any moment, resumed, described, replayed and shared, through the command line."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from support.forking import RUN, Forked
from support.golden import DATA, MODEL
from transformers import AutoModelForCausalLM

import justforward
from justforward.commands.cli import main
from justforward.optim.log import read

# fmt: off
JOB = ["--task_name", "SST2", "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--trainer",
       "zo", "--train_as_classification", "--num_train", "16", "--num_dev", "8", "--num_eval", "6", "--train_set_seed",
       "0", "--max_steps", "12", "--per_device_train_batch_size", "8", "--learning_rate", "1e-4", "--save_strategy",
       "no", "--lr_scheduler_type", "linear", "--weight_decay", "0.1", "--save_model"]
# fmt: on
WAYS = {
    "full": [],
    "bfloat16": ["--load_bfloat16"],
    "lora": ["--lora"],
    "prefix": ["--prefix_tuning"],
    "head": ["--head_tuning"],
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(folder: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (path,) = Path(folder).glob("*.safetensors")
    return load_file(path)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert set(a) == set(b)
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("way", WAYS)
def test_replay_gives_the_run_to_the_bit(way, capsys):
    assert main([*JOB, *WAYS[way], "--output_dir", "out"]) == 0
    assert main(["replay", "out", "--output", "again"]) == 0
    assert equal(weights("out"), weights("again"))
    assert main(["replay", "out/trajectory.log", "--to", "0", "--output", "base"]) == 0
    assert not equal(weights("out"), weights("base"))
    capsys.readouterr()
    assert main(["log", "out"]) == 0
    shown = capsys.readouterr().out
    assert "12 of 12, 0 skipped" in shown
    assert "verified" in shown


def test_a_shared_folder_is_a_model(tmp_path):
    assert main([*JOB, "--output_dir", "out"]) == 0
    shared = tmp_path / "shared"
    shared.mkdir()
    for name in ("trajectory.log", "README.md"):
        (shared / name).write_bytes((tmp_path / "out" / name).read_bytes())
    assert sum(p.stat().st_size for p in shared.iterdir()) < 10_000
    loaded = justforward.load(shared)
    saved = AutoModelForCausalLM.from_pretrained("out")
    for a, b in zip(loaded.model.parameters(), saved.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "justforward.load" in (shared / "README.md").read_text()


def test_sigkill_at_random_moments_loses_nothing_and_repeats_nothing():
    assert main([*JOB, "--max_steps", "60", "--output_dir", "whole"]) == 0
    log = Path("killed/trajectory.log")
    command = [sys.executable, RUN, *JOB, "--max_steps", "60", "--output_dir", "killed"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    chance = random.Random(0)
    kills = 0
    while kills < 4:
        process = Forked(command, Path.cwd(), settings, Path("said.txt"), Path("said.txt"))
        before = len(read(log).steps) if log.exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and len(read(log).steps) >= before + 3:
                time.sleep(chance.uniform(0, 0.1))
                break
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        if process.wait(timeout=60) == 0:
            break
    assert kills > 0
    assert main([*JOB, "--max_steps", "60", "--output_dir", "killed"]) == 0
    assert equal(weights("whole"), weights("killed"))
    assert read(log).steps == read(Path("whole/trajectory.log")).steps


@pytest.mark.parametrize("torn", ["trainer_state.json", "rng_state.pth", "optimizer.pt"])
def test_a_kill_while_a_checkpoint_is_saved_does_not_stick(torn):
    """The library writes these files in place: a kill leaves them empty, and the log ends at the checkpoint's step."""
    saving = ["--save_strategy", "steps", "--save_steps", "6"]
    assert main([*JOB, *saving, "--output_dir", "whole"]) == 0
    assert main([*JOB, *saving, "--output_dir", "killed"]) == 0
    for name in ("checkpoint-12", "model.safetensors"):
        path = Path("killed", name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    log, checkpoint = Path("killed/trajectory.log"), Path("killed/checkpoint-6")
    log.write_bytes(log.read_bytes()[: -6 * 4])
    (checkpoint / torn).write_bytes(b"")
    if torn != "trainer_state.json":
        (checkpoint / "trainer_state.json").unlink()
    assert main([*JOB, *saving, "--output_dir", "killed"]) == 0
    assert equal(weights("whole"), weights("killed"))
    assert log.read_bytes() == Path("whole/trajectory.log").read_bytes()


@pytest.mark.parametrize("saving", [[], ["--save_strategy", "steps", "--save_steps", "4"]])
@pytest.mark.parametrize("trainer", ["zo", "regular"])
def test_a_finished_job_given_again_is_evaluated_only(trainer, saving, capsys):
    words = [*JOB, "--trainer", trainer, *saving, "--result_file", "r.json", "--output_dir"]
    assert main([*words, "out"]) == 0
    first, model = json.loads(Path("r.json").read_text()), weights("out")
    capsys.readouterr()
    assert main([*words, "out"]) == 0
    again = json.loads(Path("r.json").read_text())
    assert equal(weights("out"), model)
    assert (again["accuracy"], again["train_steps"]) == (first["accuracy"], 12)
    if trainer == "zo":
        assert len(read(Path("out/trajectory.log")).steps) == 12
    if trainer == "zo" or saving:
        assert "all 12 steps were made before" in capsys.readouterr().err


def test_checkpoints_without_weights():
    # fmt: off
    saving = ["--save_strategy", "steps", "--save_steps", "4", "--eval_strategy", "steps", "--eval_steps", "4",
              "--load_best_model_at_end", "--learning_rate", "1e-2"]
    # fmt: on
    assert main([*JOB, *saving, "--output_dir", "plain"]) == 0
    assert main([*JOB, *saving, "--output_dir", "light", "--save_trajectory"]) == 0
    assert not list(Path("light").glob("checkpoint-*/*.safetensors"))
    assert equal(weights("plain"), weights("light"))


def test_the_log_of_another_job_is_kept_beside():
    assert main([*JOB, "--output_dir", "out"]) == 0
    first = Path("out/trajectory.log").read_bytes()
    assert main([*JOB, "--output_dir", "out", "--learning_rate", "1e-5"]) == 0
    assert Path("out/trajectory-1.log").read_bytes() == first
    assert read(Path("out/trajectory.log")).header["schedule"]["lr"] == 1e-5


def test_every_flipped_bit_is_found():
    assert main([*JOB, "--output_dir", "out"]) == 0
    path = Path("out/trajectory.log")
    data = path.read_bytes()
    log = read(path)
    for bit in [*range(0, 8 * log.start, 37), *range(8 * log.start, 8 * len(data))]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|not a trajectory log|cut short"):
            read(path).check()
    path.write_bytes(data[:-2])
    assert read(path).torn == 2
    assert len(read(path).steps) == 11


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["log", "nowhere"], "nowhere: no such trajectory log"),
        (["log", "."], "no such trajectory log"),
        (["replay", "out", "--output", "x", "--to", "99"], "holds 12 steps"),
        (["replay", "out", "--output", "x", "--model", "./missing"], "no such file or folder"),
        (["replay", "out", "--output", "x", "--model", "other"], "not the model that this run started from"),
        (["replay", "out"], "--output"),
        (["log", "text"], "not a trajectory log"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(words, fragment, capsys):
    assert main([*JOB, "--output_dir", "out"]) == 0
    Path("text").mkdir()
    Path("text/trajectory.log").write_text("hello, this is no log")
    if "other" in words:
        model = AutoModelForCausalLM.from_pretrained(MODEL)
        next(model.parameters()).data[0, 0] += 1
        model.save_pretrained("other")
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
            Path("other", name).write_bytes(Path(MODEL, name).read_bytes())
    capsys.readouterr()
    assert main(words) == 2
    assert fragment in capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("x").exists()


def test_header_names_the_job():
    assert main([*JOB, "--output_dir", "out", "--lora"]) == 0
    header = json.loads(json.dumps(read(Path("out/trajectory.log")).header))
    assert header["recipe"]["tuning"]["method"] == "lora"
    assert header["job"]["task_name"] == "SST2"
