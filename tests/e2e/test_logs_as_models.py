"""A run's log is a model's name: evaluated, trained further, exported, as what the run ended with."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.golden import DATA, MODEL

from justforward.commands.cli import main
from justforward.results.places import predictions

# fmt: off
JOB = ["--task_name", "SST2", "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--num_eval", "4",
       "--report_to", "none"]
TRAIN = ["--trainer", "zo", "--train_as_classification", "--num_train", "8", "--train_set_seed", "0",
         "--max_steps", "4", "--per_device_train_batch_size", "4", "--learning_rate", "0.01", "--save_steps", "2",
         "--save_strategy", "steps", "--save_trajectory"]
# fmt: on


def run(tmp_path, name, *words):
    out = [*JOB, *words, "--output_dir", str(tmp_path / name), "--result_file", str(tmp_path / f"{name}.json")]
    assert main(out) == 0
    rows = predictions(tmp_path / f"{name}.json").read_text().splitlines()
    return [json.loads(row)["scores"] for row in rows]


@pytest.fixture(scope="module", params=["full", "lora"])
def trained(request, tmp_path_factory):
    """(arguments of its tuning, its folder with nothing but the log, its scores)."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    words = ["--lora", "--zo_eps", "1e-2"] if request.param == "lora" else []
    scores = run(tmp_path, "a", "--model_name", MODEL, *TRAIN, *words, "--save_model")
    (tmp_path / "shared").mkdir()
    shutil.copy(tmp_path / "a" / "trajectory.log", tmp_path / "shared")
    return words, tmp_path, scores


def test_its_scores_are_the_runs(trained, tmp_path):
    _, folder, scores = trained
    assert run(tmp_path, "again", "--model_name", str(folder / "shared")) == scores
    earlier = run(tmp_path, "step2", "--model_name", str(folder / "a" / "checkpoint-2"))
    assert earlier != scores


def test_it_is_trained_further_and_that_log_is_a_name_too(trained, tmp_path):
    words, folder, scores = trained
    further = run(tmp_path, "b", "--model_name", str(folder / "shared"), *TRAIN, *words, "--save_model")
    assert further != scores
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "b" / "trajectory.log", tmp_path / "second")
    assert run(tmp_path, "c", "--model_name", str(tmp_path / "second")) == further


def test_export_makes_a_plain_model_of_it(trained, tmp_path):
    _, folder, scores = trained
    assert main(["export", str(folder / "shared"), "--output", str(tmp_path / "plain")]) == 0
    again = run(tmp_path, "again", "--model_name", str(tmp_path / "plain"))
    torch.testing.assert_close(torch.tensor(again), torch.tensor(scores), rtol=0, atol=1e-4)
    if not trained[0]:
        ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "plain", folder / "a"))
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_mistakes_are_one_line(trained, tmp_path, capsys):
    words, folder, _ = trained
    name = str(folder / "shared" / "trajectory.log")
    if words:
        return
    damaged = tmp_path / "damaged"
    shutil.copytree(folder / "shared", damaged)
    data = bytearray((damaged / "trajectory.log").read_bytes())
    data[-3] ^= 1
    (damaged / "trajectory.log").write_bytes(data)
    other = ["--base_model", str(tmp_path / "nowhere")]
    cases = [
        ([name, "--load_bfloat16"], "is replayed in the run's own dtype, which is float32 and not bfloat16"),
        ([name, *other], "nowhere: no such file or folder"),
        ([str(damaged)], "damaged"),
        ([name, "--trainer", "regular", "--linear_probing", "--num_train", "4", "--train_set_seed", "0"], "export"),
    ]
    for words, line in cases:
        assert main([*JOB, "--result_file", str(tmp_path / "x.json"), "--model_name", *words]) == 2
        assert line in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "x.json").exists()
