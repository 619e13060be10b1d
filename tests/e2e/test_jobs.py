"""Whole jobs through the command line, on the golden tiny model."""

import json
from pathlib import Path

import pytest
import torch
from support.golden import DATA, MODEL
from transformers import AutoModelForCausalLM

from justforward.commands.cli import main

# fmt: off
MEZO = [
    "--trainer", "zo", "--train_as_classification", "--num_train", "16", "--num_dev", "8", "--num_eval", "10",
    "--train_set_seed", "0", "--seed", "0", "--max_steps", "6", "--per_device_train_batch_size", "8",
    "--lr_scheduler_type", "constant", "--learning_rate", "1e-4", "--logging_steps", "1", "--save_strategy", "no",
]
# fmt: on


def job(task: str, *more: str) -> int:
    return main(["--task_name", task, "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm", *more])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("dtype", ["", "--load_float16", "--load_bfloat16"])
def test_mezo_trains_evaluates_and_saves(dtype):
    words = ["--output_dir", "out", "--save_model", *([dtype] if dtype else [])]
    assert job("SST2", *MEZO, *words) == 0
    result = json.loads(Path("result/SST2-tiny-opt-4k-sampleeval10-ntrain16-ndev8-trainset0.json").read_text())
    assert {"accuracy", "dev_accuracy", "train_loss", "skipped_steps"} <= set(result)
    assert (result["num_train"], result["num_dev"], result["num_eval"], result["train_steps"]) == (16, 8, 10, 6)
    model = AutoModelForCausalLM.from_pretrained("out")
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    moved, before = (dict(m.named_parameters())["model.decoder.embed_tokens.weight"] for m in (model, base))
    assert not torch.equal(moved.float(), before)
    history = json.loads(Path("out/trainer_state.json").read_text())["log_history"]
    assert sum("projected_grad" in entry for entry in history) == 6


@pytest.mark.parametrize("task", ["SQuAD", "DROP", "Copa", "ReCoRD"])
def test_teacher_forcing_on_the_tasks_without_classification(task):
    words = [w for w in MEZO if w != "--train_as_classification"]
    assert job(task, *words, "--max_steps", "2", "--max_new_tokens", "4", "--result_file", "r.json") == 0
    result = json.loads(Path("r.json").read_text())
    assert ("f1" in result) == (task in ("SQuAD", "DROP"))
    assert ("em" in result) == (task in ("SQuAD", "DROP"))


def test_best_checkpoint_by_accuracy_on_the_development_set():
    # fmt: off
    words = ["--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps", "--save_steps", "2",
             "--save_total_limit", "1", "--load_best_model_at_end", "--metric_for_best_model", "accuracy",
             "--output_dir", "out", "--result_file", "r.json"]
    # fmt: on
    assert job("SST2", *MEZO, *words) == 0
    history = json.loads(Path("out/trainer_state.json").read_text())
    best = max(entry["eval_accuracy"] for entry in history["log_history"] if "eval_accuracy" in entry)
    assert history["best_metric"] == best
    assert json.loads(Path("r.json").read_text())["dev_accuracy"] == pytest.approx(best)


def test_every_train_set_starts_from_the_base_model():
    words = [w for w in MEZO if w not in ("--train_set_seed",)]
    words.remove("0")
    words += ["--num_train_sets", "2", "--output_dir", "out", "--save_model"]
    assert job("SST2", *words) == 0
    assert {p.name for p in Path("out").iterdir()} == {"trainset0", "trainset1"}
    # The second set alone gives the same model as the second set after the first.
    alone = [*MEZO, "--train_set_seed", "1", "--output_dir", "alone", "--save_model"]
    assert job("SST2", *alone) == 0
    models = [AutoModelForCausalLM.from_pretrained(p) for p in ("out/trainset1", "alone")]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_diverging_run_stops_with_one_clear_line():
    words = ["--learning_rate", "1e30", "--max_steps", "30", "--zo_max_skipped", "5"]
    with pytest.raises(SystemExit) as stopped:
        job("SST2", *MEZO, *words)
    assert "5 steps in a row" in str(stopped.value.code)
    assert "lower the learning rate" in str(stopped.value.code)
    assert not list(Path("result").glob("*.json"))


def test_split_sizes_are_kept_when_rows_run_out():
    words = ["--num_train", "100", "--num_dev", "100", "--result_file", "r.json", "--max_steps", "1"]
    assert job("SST2", *MEZO, *words) == 0
    result = json.loads(Path("r.json").read_text())
    assert (result["num_train"], result["num_dev"]) == (20, 20)


def test_predictions_are_in_evaluation_order_with_scores():
    assert job("CB", "--num_eval", "7", "--result_file", "deep/r.json") == 0
    rows = [json.loads(line) for line in Path("deep/r-predictions.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"id", "candidates", "scores", "predicted", "correct"}] * 7
    metric = json.loads(Path("deep/r.json").read_text())["accuracy"]
    assert sum(row["predicted"] == row["correct"] for row in rows) / 7 == pytest.approx(metric)
    for row in rows:
        best = max(range(len(row["scores"])), key=lambda i: row["scores"][i])
        assert row["predicted"] == row["candidates"][best]


def test_verbose_shows_every_sample_and_else_three_are_shown(capsys):
    for words, shown in (["--verbose"], 6), ([], 3):
        assert job("SST2", "--num_eval", "6", *words) == 0
        assert capsys.readouterr().err.count("predicted:") == shown


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (["--model_name", "./nowhere"], "no such file or folder"),
        (["--model_name", "nobody/nothing"], "--model_name nobody/nothing"),
        (["--result_file", "/proc/nowhere/r.json"], "--result_file: cannot write"),
        (["--max_length", "10", "--task_name", "SQuAD"], "max_new_tokens"),
    ],
)
def test_what_only_shows_at_work_is_one_line_too(words, fragment, capsys):
    assert job("SST2", "--num_eval", "2", *words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert fragment in error
    assert not Path("result").exists() or not list(Path("result").iterdir())
