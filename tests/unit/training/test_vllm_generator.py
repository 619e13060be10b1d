"""Rewards of texts that vLLM writes, by a stand-in with its documented interface (tests/support/stand_ins/vllm)."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from support.families import tiny
from support.golden import DATA, MODEL
from transformers import AutoTokenizer

from justforward.assembly import Assembly
from justforward.command_line.job import JobArguments
from justforward.commands.cli import main
from justforward.scoring.generation import GenerationSettings
from justforward.scoring.vllm_generator import VllmGenerator, named_weights
from justforward.tasks import get_task

STAND_INS = Path(__file__).parents[2] / "support" / "stand_ins"

# fmt: off
JOB = ["--task_name", "SQuAD", "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm",
       "--trainer", "zo", "--non_diff", "--reward", "letters:count", "--num_train", "4", "--num_eval", "3",
       "--train_set_seed", "0", "--max_steps", "2", "--zo_eps", "1e-1", "--per_device_train_batch_size", "4",
       "--max_new_tokens", "4", "--save_strategy", "no", "--logging_steps", "1", "--learning_rate", "1e-3"]
# fmt: on


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.syspath_prepend(STAND_INS)
    Path("letters.py").write_text(
        "def count(samples, outputs):\n    return [sum(map(ord, o)) / 1000 for o in outputs]\n"
    )
    yield importlib.import_module("vllm")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("vllm", "letters")]:
        del sys.modules[name]


def ran(name: str, *more: str) -> tuple[list[dict], list[dict], dict]:
    """The training's log, the predictions and the metrics of a job."""
    assert main([*JOB, "--output_dir", name, "--result_file", f"{name}.json", *more]) == 0
    log = json.loads(Path(name, "trainer_state.json").read_text())["log_history"]
    texts = [json.loads(line) for line in Path(f"{name}-predictions.jsonl").read_text().splitlines()]
    kept = ("loss", "projected_grad")
    return [{k: e[k] for k in kept} for e in log if "loss" in e], texts, json.loads(Path(f"{name}.json").read_text())


def test_an_engine_that_does_not_start_is_one_line(vllm, monkeypatch, capsys):
    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("Engine core initialization failed.\nSee root cause above.")

    monkeypatch.setattr(vllm, "LLM", no_memory)
    assert main([*JOB, "--output_dir", "out", "--result_file", "out.json", "--generator", "vllm"]) == 2
    assert (
        "--generator vllm does not start here: Engine core initialization failed. See root" in capsys.readouterr().err
    )


@pytest.mark.parametrize("tuning", [["--untie_emb"], ["--lora", "--zo_samples", "2"]])
def test_a_run_is_that_of_the_plain_generator(vllm, tuning):
    """Greedy texts are the same, so are the rewards at both probes: theta + eps z and theta - eps z have arrived."""
    here = ran("plain", "--zo_probe", "copy", *tuning)
    there = ran("engine", "--generator", "vllm", *tuning)
    assert there[:2] == here[:2]
    assert all(entry["projected_grad"] != 0 for entry in there[0])
    assert len(vllm.LLM.made) == 1
    assert len(vllm.LLM.made[0].asked) == 2 * 2 * (2 if "--lora" in tuning else 1) + 1
    assert there[2]["f1"] == here[2]["f1"]
    assert "--generator vllm" in there[2]["run"]["command"]


def test_samples_of_both_probes_draw_with_the_same_numbers(vllm):
    log, _, _ = ran("engine", "--generator", "vllm", "--sampling", "True", "--num_completions", "2")
    assert all(entry["projected_grad"] != 0 for entry in log)
    plus, minus, *others = [[p.seed for p in asked] for asked in vllm.LLM.made[0].asked]
    assert plus == minus
    assert len(set(plus)) == 4 * 2
    assert others[0] == others[1] != plus
    assert (vllm.LLM.made[0].asked[0][0].top_p, vllm.LLM.made[0].asked[0][0].temperature) == (0.95, 1.0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--num_beams", "2"], "--num_beams 2: --generator vllm searches no beams"),
        (["--load_int8", "--lora"], "leave out --load_int8"),
        (["--prefix_tuning"], "leave out --prefix_tuning"),
        (["--zo_offload", "cpu"], "leave out --zo_offload cpu"),
        (["--zo_probe", "paired"], "--zo_probe paired never holds moved weights"),
        (["--trainer", "guided"], "is for evaluation and for --trainer zo"),
        (["--generator_memory", "1.5"], "argument --generator_memory: must be between 0 and 1, got 1.5"),
        (["--task_name", "SST2"], "SST2 has none to write"),
        (["--generator", "transformers", "--generator_memory", "0.5"], "--generator_memory is for --generator vllm"),
    ],
)
def test_what_it_does_not_do_is_told_in_a_line(vllm, words, told, capsys):
    assert main([*JOB, "--output_dir", "out", "--generator", "vllm", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "\n" not in error


def test_without_vllm_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert main([*JOB, "--output_dir", "out", "--generator", "vllm"]) == 2
    assert "pip install 'justforward[vllm]'" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["opt", "mixtral"])
def test_weights_are_named_as_in_a_checkpoint(family, tmp_path):
    """A tied head stands there once, fused experts one by one."""
    model = tiny(family)
    model.save_pretrained(tmp_path)
    kept, named = load_file(tmp_path / "model.safetensors"), dict(named_weights(model))
    assert named.keys() == kept.keys()
    assert all(torch.equal(named[name], kept[name]) for name in kept)


def test_a_prefix_and_quantised_weights_are_refused():
    prefixed, quantised = tiny("llama"), tiny("llama")
    prefixed.__dict__["peft_config"] = {"default": SimpleNamespace(is_prompt_learning=True)}
    quantised.config.quantization_config = {"quant_method": "gptq"}
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for model in (prefixed, quantised):
        with pytest.raises(ValueError, match="takes plain weights, or LoRA over them"):
            VllmGenerator(model, tokenizer, GenerationSettings(), max_length=64, memory=0.3)


def test_several_processes_are_refused():
    job = JobArguments(task_name="SQuAD", generator="vllm")
    parts = Assembly(job, cast(Any, SimpleNamespace(world_size=2)), get_task("SQuAD"))
    with pytest.raises(ValueError, match="--generator vllm is for one process"):
        parts.build()
