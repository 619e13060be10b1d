"""A saved adapter is a model's name: evaluated, trained further, merged, exported; with the scores that PEFT gives."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.golden import DATA, MODEL
from transformers import AutoModelForCausalLM

from justforward.commands.cli import main
from justforward.models.recipe import ModelRecipe
from justforward.results.places import predictions

# fmt: off
JOB = ["--task_name", "SST2", "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--num_eval", "8",
       "--report_to", "none"]
TRAIN = ["--trainer", "zo", "--train_as_classification", "--num_train", "8", "--train_set_seed", "0",
         "--max_steps", "3", "--per_device_train_batch_size", "4", "--learning_rate", "0.05", "--zo_eps", "1e-2",
         "--save_model"]
# fmt: on
IDS = torch.tensor([[5, 6, 7, 8]])


def run(tmp_path, name, *words):
    out = [*JOB, *words, "--output_dir", str(tmp_path / name), "--result_file", str(tmp_path / f"{name}.json")]
    assert main(out) == 0
    told = json.loads((tmp_path / f"{name}.json").read_text())
    rows = predictions(tmp_path / f"{name}.json").read_text().splitlines()
    return told, [json.loads(row) for row in rows]


@pytest.fixture(scope="module", params=["lora", "prefix"])
def trained(request, tmp_path_factory):
    """(the kind, its folder, what its evaluation told)."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    words = ["--lora"] if request.param == "lora" else ["--prefix_tuning", "--no_reparam"]
    return request.param, words, tmp_path, run(tmp_path, "a", "--model_name", MODEL, *TRAIN, *words)


def scores(found):
    return [row["scores"] for row in found[1]]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_it_is_evaluated_as_it_was_after_training(trained, tmp_path):
    _, _, folder, after = trained
    again = run(tmp_path, "again", "--model_name", str(folder / "a"))
    assert again[0]["accuracy"] == after[0]["accuracy"]
    torch.testing.assert_close(torch.tensor(scores(again)), torch.tensor(scores(after)), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_plain_peft_gives_the_same(trained):
    _, _, folder, _ = trained
    ours = ModelRecipe(model_name=str(folder / "a")).build().model
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), folder / "a")
    torch.testing.assert_close(logits(ours), logits(theirs))


def test_it_is_trained_further_and_nothing_else_is(trained, tmp_path):
    kind, words, folder, _ = trained
    run(tmp_path, "b", "--model_name", str(folder / "a"), *TRAIN, *words)
    first, second = (load_file(path / "adapter_model.safetensors") for path in (folder / "a", tmp_path / "b"))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    told = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == MODEL
    # From the same start the log gives the same adapter.
    assert main(["replay", str(tmp_path / "b"), "--output", str(tmp_path / "c")]) == 0
    replayed = load_file(tmp_path / "c" / "adapter_model.safetensors")
    assert all(torch.equal(second[name], replayed[name]) for name in second), kind


def test_export_makes_a_plain_model_of_lora(trained, tmp_path, capsys):
    kind, _, folder, after = trained
    code = main(["export", str(folder / "a"), "--output", str(tmp_path / "plain")])
    if kind == "prefix":
        assert code == 2
        assert "a prefix is no part of a model's weights" in capsys.readouterr().err
        assert not (tmp_path / "plain").exists()
        return
    assert code == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    ours = ModelRecipe(model_name=str(folder / "a")).build().model
    torch.testing.assert_close(logits(plain), logits(ours), rtol=1e-4, atol=1e-5)
    again = run(tmp_path, "again", "--model_name", str(tmp_path / "plain"))
    torch.testing.assert_close(torch.tensor(scores(again)), torch.tensor(scores(after)), rtol=0, atol=1e-4)


def test_all_weights_are_trained_from_a_merged_lora(trained, tmp_path, capsys):
    kind, _, folder, _ = trained
    words = [*JOB, *TRAIN, "--model_name", str(folder / "a"), "--output_dir", str(tmp_path / "d")]
    code = main([*words, "--result_file", str(tmp_path / "d.json"), "--learning_rate", "1e-3"])
    if kind == "prefix":
        assert code == 2
        assert "a prefix is trained further with --prefix_tuning" in capsys.readouterr().err
        return
    assert code == 0
    assert (tmp_path / "d" / "model.safetensors").is_file()
    assert not (tmp_path / "d" / "adapter_config.json").exists()


def test_mistakes_are_one_line(trained, tmp_path, capsys):
    kind, _, folder, _ = trained
    other = tmp_path / "other"
    shutil.copytree(folder / "a", other)
    config = json.loads((other / "adapter_config.json").read_text())
    cases = [
        ({**config, "base_model_name_or_path": None}, [], "names no base model: give it with --base_model"),
        ({**config, "base_model_name_or_path": "./nowhere"}, [], "./nowhere: no such file or folder"),
        ({**config, "peft_type": "IA3"}, [], "is an adapter of the kind IA3"),
        (config, ["--trainer", "regular", "--linear_probing", "--num_train", "4", "--train_set_seed", "0"], "export"),
    ]
    for told, words, line in cases:
        (other / "adapter_config.json").write_text(json.dumps(told))
        assert main([*JOB, "--model_name", str(other), "--result_file", str(tmp_path / "x.json"), *words]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert line in error
    (other / "adapter_model.safetensors").unlink()
    (other / "adapter_config.json").write_text(json.dumps(config))
    assert main([*JOB, "--model_name", str(other), "--result_file", str(tmp_path / "x.json")]) == 2
    assert "has no adapter_model.safetensors" in capsys.readouterr().err
    assert main([*JOB, "--model_name", MODEL, "--base_model", MODEL, "--result_file", str(tmp_path / "x.json")]) == 2
    assert "--base_model is for the name of an adapter" in capsys.readouterr().err
    assert Path(tmp_path / "x.json").exists() is False, kind


def test_an_adapter_of_another_shape_is_refused(trained, tmp_path, capsys):
    _, _, folder, _ = trained
    config = AutoModelForCausalLM.from_pretrained(MODEL).config
    config.hidden_size = config.word_embed_proj_dim = 32
    config.ffn_dim = 64
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "small")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(Path(MODEL) / name, tmp_path / "small")
    words = [*JOB, "--model_name", str(folder / "a"), "--base_model", str(tmp_path / "small")]
    assert main([*words, "--result_file", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the adapter does not fit" in error
