"""Rewards: metrics by name, own functions, and what they cannot be."""

import json
import math
from pathlib import Path

import pytest
from support.golden import DATA, MODEL

from justforward.commands.cli import main
from justforward.tasks import get_task
from justforward.training.rewards import find_reward


def samples(name: str):
    return get_task(name).load(DATA).validation[:4]


def test_a_metric_is_a_reward_per_sample():
    squad = samples("SQuAD")
    outputs = [squad[0].correct[0], "nothing of the kind", squad[2].correct[-1], ""]
    assert find_reward(None, get_task("SQuAD"))(squad, outputs) == [1.0, 0.0, 1.0, 0.0]
    assert find_reward("em", get_task("SQuAD"))(squad, outputs) == [1.0, 0.0, 1.0, 0.0]
    sst2 = samples("SST2")
    assert find_reward(None, get_task("SST2"))(sst2, [s.correct for s in sst2]) == [1.0] * 4
    assert find_reward("accuracy", get_task("SST2"))(sst2, [1 - s.correct for s in sst2]) == [0.0] * 4


def test_own_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my_rewards.py").write_text(
        "def short(samples, outputs):\n    return [-len(str(o)) for o in outputs]\n"
        "def wrong(samples, outputs):\n    return [1.0]\n"
        "number = 3\n"
    )
    task = get_task("SQuAD")
    assert find_reward("my_rewards:short", task)(samples("SQuAD"), ["a", "bb", "", "c"]) == [-1, -2, 0, -1]
    with pytest.raises(ValueError, match="gave 1 numbers for 4 samples"):
        find_reward("my_rewards:wrong", task)(samples("SQuAD"), [""] * 4)
    with pytest.raises(ValueError, match="is not a function"):
        find_reward("my_rewards:number", task)
    with pytest.raises(ValueError, match="no attribute 'missing'"):
        find_reward("my_rewards:missing", task)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("f1", "SST2", "use accuracy"),
        ("accuracy", "SQuAD", "use f1 or em"),
        ("bleu", "SQuAD", "--reward bleu: unknown metric or reward; known: accuracy, em, f1, or your own"),
        ("no_such_module:f", "SST2", "No module named 'no_such_module'"),
    ],
)
def test_what_is_no_reward(name, task, message):
    with pytest.raises(ValueError, match=message):
        find_reward(name, get_task(task))


# fmt: off
JOB = ["--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--trainer", "zo", "--non_diff",
       "--num_train", "8", "--num_eval", "4", "--train_set_seed", "0", "--max_steps", "3", "--zo_eps", "1e-1",
       "--per_device_train_batch_size", "8", "--max_new_tokens", "4", "--save_strategy", "no", "--logging_steps", "1",
       "--learning_rate", "1e-3", "--result_file", "r.json", "--output_dir", "out"]
# fmt: on


def history() -> list[dict]:
    return [e for e in json.loads(Path("out/trainer_state.json").read_text())["log_history"] if "loss" in e]


@pytest.mark.parametrize("task", ["SST2", "ReCoRD", "SQuAD", "DROP"])
def test_every_kind_of_task_trains_on_its_metric(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--task_name", task, *JOB]) == 0
    assert len(history()) == 3
    assert all(-1.0 <= entry["loss"] <= 0.0 for entry in history())


def test_own_reward_with_rank_shaping_and_more_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lengths.py").write_text("def length(samples, outputs):\n    return [len(o) for o in outputs]\n")
    more = ["--reward", "lengths:length", "--zo_samples", "3", "--zo_shaping", "rank"]
    assert main(["--task_name", "SQuAD", *JOB, *more]) == 0
    assert all(entry["loss"] < 0 and math.isfinite(entry["projected_grad"]) for entry in history())


def test_ties_are_zero_steps_counted_and_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("constant.py").write_text("def one(samples, outputs):\n    return [1.0] * len(samples)\n")
    assert main(["--task_name", "SST2", *JOB, "--reward", "constant:one"]) == 0
    assert [entry["zero_steps"] for entry in history()] == [1, 2, 3]
    assert json.loads(Path("r.json").read_text())["zero_steps"] == 3
