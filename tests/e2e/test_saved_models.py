"""What a job saves on a full disk: one line, and no loss."""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.golden import DATA, MODEL

from justforward.commands.cli import main

# fmt: off
JOB = ["--task_name", "SST2", "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--num_eval", "6"]
TRAIN = [
    *JOB, "--model_name", MODEL, "--train_as_classification", "--num_train", "8", "--train_set_seed", "0",
    "--max_steps", "4", "--per_device_train_batch_size", "4", "--save_model",
]
# fmt: on
ZO = [*TRAIN, "--trainer", "zo", "--learning_rate", "1e-4"]
FT = [*TRAIN, "--trainer", "regular", "--learning_rate", "1e-3"]
STEPS = ["--save_strategy", "steps", "--save_steps", "2"]
WAYS = {
    "MeZO": ([*ZO, "--save_strategy", "no"], 100_000, ", which goes on from the run's log: no step is lost"),
    "MeZO, checkpoints": ([*ZO, *STEPS], 100_000, ", which goes on from the run's log: no step is lost"),
    "FT": ([*FT, *STEPS], 100_000, ""),
    "FT, optimiser": ([*FT, *STEPS], 3_000_000, ""),
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@contextmanager
def files_of_at_most(size):
    """A disk on which files cannot grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(words, folder):
    return main([*words, "--output_dir", folder, "--result_file", f"{folder}.json"])


def result(name):
    found = json.loads(Path(name).read_text(encoding="utf-8"))
    return {key: found[key] for key in ("accuracy", "num_eval")}


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(way, capsys):
    words, size, kept = WAYS[way]
    assert run(words, "whole") == 0
    capsys.readouterr()
    with files_of_at_most(size):
        assert run(words, "out") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("justforward: error: cannot write to out: ")
    assert last.endswith(f": make room there and give the same command again{kept}")
    assert not Path("out.json").exists()
    assert run(words, "out") == 0
    whole, out = (load_file(f"{folder}/model.safetensors") for folder in ("whole", "out"))
    assert all(whole[name].equal(out[name]) for name in whole)
    assert result("whole.json") == result("out.json")


def test_a_replay_says_where_there_is_no_room(capsys):
    assert run([*ZO, "--save_strategy", "no"], "out") == 0
    with files_of_at_most(100_000):
        assert main(["replay", "out", "--output", "made"]) == 2
    assert "cannot write to made: " in capsys.readouterr().err
    assert main(["replay", "out", "--output", "made"]) == 0
    saved, made = (load_file(f"{folder}/model.safetensors") for folder in ("out", "made"))
    assert all(saved[name].equal(made[name]) for name in saved)
