"""Runs that were moved, copied or continued elsewhere, and output folders that another run takes over."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.golden import DATA, MODEL
from transformers import AutoModelForCausalLM

from justforward.commands.cli import main

# fmt: off
JOB = ["--task_name", "SST2", "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--num_eval",
       "4", "--train_as_classification", "--num_train", "16", "--num_dev", "8", "--train_set_seed", "0",
       "--max_steps", "6", "--per_device_train_batch_size", "4", "--save_model", "--learning_rate",
       "3e-2", "--result_file", "r.json"]
SAVING = ["--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2",
          "--load_best_model_at_end"]
# fmt: on
WAYS = {
    "backpropagation": ["--trainer", "regular", *SAVING],
    "MeZO": ["--trainer", "zo", *SAVING],
    "MeZO, marks": ["--trainer", "zo", "--save_trajectory", *SAVING],
}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """Puts what a training leaves into a folder; what several tests begin with is trained once."""
    made = {}

    def put(folder, *words):
        if words not in made:
            made[words] = tmp_path_factory.mktemp("made")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(made[words])
                assert main([*JOB, *words, "--output_dir", "run"]) == 0
        shutil.copytree(made[words] / "run", folder)

    return put


@pytest.fixture
def finished(copied):
    """Leaves a training in the folder `run`; its weights, whose file is gone so that it must be written again."""

    def train(way):
        copied("run", *WAYS[way])
        assert best("run").name != "checkpoint-6"
        found = weights("run")
        Path("run", "model.safetensors").unlink()
        return found

    return train


def weights(folder):
    return {f"{p.name} {n}": w for p in Path(folder).glob("*.safetensors") for n, w in load_file(p).items()}


def equal(a, b):
    assert a
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def best(folder):
    return Path(json.loads(Path(folder, "trainer_state.json").read_text())["best_model_checkpoint"])


@pytest.mark.parametrize("way", WAYS)
def test_a_finished_run_ends_with_its_best_checkpoint_wherever_it_lies(way, finished, capsys, monkeypatch):
    expected = finished(way)
    Path("run").rename("moved")
    capsys.readouterr()
    assert main([*JOB, *WAYS[way], "--output_dir", "moved"]) == 0
    said = capsys.readouterr().err
    assert "all 6 steps were made before" in said
    assert "does not exist anymore" not in said
    assert equal(weights("moved"), expected)
    assert best("moved").parent == Path("moved")
    # A copy, whose original has become another run meanwhile.
    shutil.copytree("moved", "run")
    shutil.copytree("moved", "copy")
    assert main([*JOB, *WAYS[way], "--output_dir", "run", "--seed", "7", "--overwrite_output_dir"]) == 0
    assert not equal(weights("run"), expected)
    Path("copy/model.safetensors").unlink()
    assert main([*JOB, *WAYS[way], "--output_dir", "copy"]) == 0
    assert equal(weights("copy"), expected)
    # From another folder, to which the recorded path is another one.
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    Path("../copy/model.safetensors").unlink()
    assert main([*JOB, *WAYS[way], "--output_dir", "../copy"]) == 0
    assert equal(weights("../copy"), expected)


@pytest.mark.parametrize("what", ["gone", "cut"])
@pytest.mark.parametrize("way", WAYS)
def test_a_lost_best_checkpoint_is_taken_from_the_log_or_missed(way, what, finished, capsys):
    expected, lost = finished(way), best("run")
    if what == "gone":
        shutil.rmtree(lost)
    else:
        os.truncate(lost / ("model.safetensors" if way != "MeZO, marks" else "trajectory.json"), 7)
    code = main([*JOB, *WAYS[way], "--output_dir", "run"])
    said = capsys.readouterr().err
    if way == "backpropagation":
        assert code == 2
        line = said.splitlines()[-1]
        assert line.startswith(f"justforward: error: {lost} is the best checkpoint of this run, and ")
        assert ("it is not there" in line) if what == "gone" else "model.safetensors has 7 bytes" in line
        assert weights("run") == {}
    else:
        assert code == 0
        assert "it is taken from the log" in said
        assert equal(weights("run"), expected)


def test_a_run_that_goes_on_elsewhere_looks_for_its_best_beside_the_checkpoint(finished):
    expected = finished("backpropagation")
    more = ["--resume_from_checkpoint", "run/checkpoint-4", "--output_dir", "on"]
    Path("on").mkdir()
    assert main([*JOB, *WAYS["backpropagation"], *more]) == 0
    assert best("on") == best("run")
    assert equal(weights("on"), expected)


NOTHING_SAVED = ["--save_strategy", "no"]
LORA = ["--trainer", "regular", "--lora", *NOTHING_SAVED]
FULL = ["--trainer", "regular", "--learning_rate", "1e-3", *NOTHING_SAVED]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite_output_dir"]])
def test_no_adapter_of_an_earlier_run_lies_on_the_weights(overwrite, copied):
    copied("out", *LORA)
    assert Path("out/adapter_config.json").exists()
    assert main([*JOB, *FULL, "--output_dir", "out", *overwrite]) == 0
    assert not list(Path("out").glob("adapter*"))
    copied("fresh", *FULL)
    saved, fresh = (dict(AutoModelForCausalLM.from_pretrained(f).state_dict()) for f in ("out", "fresh"))
    assert equal(saved, fresh)


def test_no_weights_of_an_earlier_run_lie_under_an_adapter(copied, capsys):
    copied("out", *FULL)
    assert main([*JOB, *LORA, "--output_dir", "out"]) == 0
    assert "out held the model of another training, which is deleted: config.json, " in capsys.readouterr().err
    assert not list(Path("out").glob("model*")) + list(Path("out").glob("config.json"))
    # But the base model's own folder keeps them.
    shutil.copytree(MODEL, "base")
    assert main([*JOB, "--model_name", "base", *LORA, "--output_dir", "base"]) == 0
    assert Path("base/model.safetensors").exists()


def test_overwriting_leaves_nothing_of_the_old_run():
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    assert main([*JOB, "--trainer", "zo", *saving, "--output_dir", "out"]) == 0
    Path("out/notes.txt").write_text("mine")
    Path("out/trajectory-1.log").write_text("put aside")
    shutil.copytree("out", "out/trainset3")
    not_saved = [word for word in [*JOB, *LORA] if word != "--save_model"]
    assert main([*not_saved, "--output_dir", "out", "--overwrite_output_dir"]) == 0
    left = {path.name for path in Path("out").iterdir()}
    assert left == {"notes.txt", "trajectory-1.log", "trainset3", "justforward_job.json", "trainer_state.json"}
    assert {path.name for path in Path("out/trainset3").iterdir()} == {"notes.txt", "trajectory-1.log"}
    assert json.loads(Path("out/trainer_state.json").read_text())["max_steps"] == 6


@pytest.mark.parametrize("base", ["out", "out/checkpoint-2"])
def test_the_base_model_is_not_overwritten(base, copied, capsys):
    copied("out", *FULL, "--save_strategy", "steps", "--save_steps", "2")
    before = sorted(Path("out").rglob("*"))
    more = ["--model_name", base, "--overwrite_output_dir", "--output_dir", "./out"]
    assert main([*JOB, *FULL, *more]) == 2
    assert f"--overwrite_output_dir would delete --model_name {base} itself" in capsys.readouterr().err
    assert sorted(Path("out").rglob("*")) == before


def test_a_folder_without_a_run_is_not_emptied():
    Path("mine").mkdir()
    for name in ("config.json", "README.md", "tokenizer.json"):
        Path("mine", name).write_text("{}")
    not_saved = [word for word in [*JOB, *FULL] if word != "--save_model"]
    assert main([*not_saved, "--output_dir", "mine", "--overwrite_output_dir"]) == 0
    assert {"config.json", "README.md", "tokenizer.json"} < {path.name for path in Path("mine").iterdir()}
