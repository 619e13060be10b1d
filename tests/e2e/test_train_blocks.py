"""Training some of a model's blocks, by the real command line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.golden import DATA, MODEL
from support.killing import KillAfter, Killed, same, weights

from justforward import experiment
from justforward.command_line.arguments import parse
from justforward.commands.cli import main

# fmt: off
JOB = ["--task_name", "SST2", "--data_dir", DATA, "--model_name", MODEL, "--use_cpu", "--disable_tqdm",
       "--train_as_classification", "--num_train", "16", "--train_set_seed", "0", "--report_to", "none",
       "--per_device_train_batch_size", "4", "--max_steps", "4", "--learning_rate", "1e-3", "--save_model",
       "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1", "--num_eval", "8",
       "--train_blocks", "1:"]
# fmt: on
HOW = {
    "mezo": ["--trainer", "zo"],
    "mezo-in-bfloat16": ["--trainer", "zo", "--load_bfloat16"],
    "lozo": ["--trainer", "zo", "--zo_method", "lozo"],
    "lora": ["--trainer", "zo", "--lora", "--zo_eps", "1e-2"],
    "backpropagation": ["--trainer", "regular"],
    "backpropagation-checkpointed": ["--trainer", "regular", "--gradient_checkpointing"],
    "a-reward": ["--trainer", "zo", "--non_diff", "--train_as_classification", "False", "--zo_eps", "0.1"],
}


def job(tmp_path, name, *more):
    folder = tmp_path / name
    return [*JOB, *more, "--output_dir", str(folder), "--result_file", str(tmp_path / f"{name}.json")]


@pytest.mark.parametrize("how", HOW)
def test_only_the_blocks_move_and_a_second_run_reads_what_the_first_kept(how, tmp_path):
    assert main(job(tmp_path, "one", *HOW[how])) == 0
    (kept,) = (tmp_path / "one" / "kept_states").iterdir()
    if how != "lora":
        before = load_file(Path(MODEL) / "model.safetensors")
        after = weights(tmp_path / "one")
        moved = {name for name in after if not torch.equal(after[name].float(), before[name].to(after[name]).float())}
        assert moved
        assert all(".layers.1." in name for name in moved)
    written = kept.stat().st_mtime_ns
    shared = ["--kept_states", str(kept.parent)]
    assert main(job(tmp_path, "two", *HOW[how], *shared)) == 0
    assert kept.stat().st_mtime_ns == written
    assert not (tmp_path / "two" / "kept_states").exists()
    kept.unlink()
    assert main(job(tmp_path, "three", *HOW[how])) == 0
    assert same(tmp_path / "one", tmp_path / "two"), "read"
    assert same(tmp_path / "one", tmp_path / "three"), "computed anew"
    found = json.loads((tmp_path / "one.json").read_text())
    assert found["train_steps"] == 4
    assert "kept_states_seconds" in found


def test_a_killed_run_goes_on_and_replays_to_the_bit(tmp_path):
    words = ["--trainer", "zo", "--load_bfloat16", "--save_trajectory"]
    assert main(job(tmp_path, "whole", *words)) == 0
    with pytest.raises(Killed):
        experiment.run(parse(job(tmp_path, "cut", *words)), callbacks=[KillAfter(3)])
    for kept in (tmp_path / "cut" / "kept_states").iterdir():
        kept.unlink()  # lost with the kill: computed anew
    assert main(job(tmp_path, "cut", *words)) == 0
    assert same(tmp_path / "whole", tmp_path / "cut")
    assert main(["replay", str(tmp_path / "whole"), "--output", str(tmp_path / "replayed")]) == 0
    assert same(tmp_path / "whole", tmp_path / "replayed")


def test_sizes_and_probes_that_are_measured_start_behind_the_frozen_blocks(tmp_path, caplog):
    with caplog.at_level("INFO", "justforward"):
        assert main(job(tmp_path, "auto", "--trainer", "zo", "--zo_eps", "auto", "--learning_rate", "auto")) == 0
    told = [record.getMessage() for record in caplog.records]
    made = next(i for i, text in enumerate(told) if "is computed once" in text)
    assert any("auto" in text for text in told[made:]), "kept before anything is measured"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--trainer", "zo", "--train_blocks", "9:"], "'9:' is no range of the model's 2 blocks: give A:B"),
        (["--trainer", "zo", "--train_blocks", "a"], "'a' is no range of blocks: give A:B"),
        (["--trainer", "zo", "--prefix_tuning"], "not for --prefix_tuning: leave one of them out"),
        (["--trainer", "regular", "--head_tuning"], "not for --head_tuning: leave one of them out"),
        (["--trainer", "none"], "--train_blocks says what is trained, and nothing is"),
        (["--trainer", "zo", "--torch_compile"], "which neither --fsdp nor --torch_compile takes"),
    ],
)
def test_what_cannot_be_is_one_line(words, told, tmp_path, capsys):
    assert main(job(tmp_path, "x", *words)) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npy"))


def test_no_room_for_the_states_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: __import__("types").SimpleNamespace(free=1000))
    assert main(job(tmp_path, "x", "--trainer", "zo")) == 2
    assert "give --kept_states a folder with more room" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npy"))
